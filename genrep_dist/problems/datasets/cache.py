"""The local cache of data sets: one folder each, with its files and a manifest of their digests, which is written last."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genrep_dist.errors import ProblemError
from genrep_dist.filesystem import what_is_at

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """The folder of the cache: ``GENREP_DATA``, or ``~/.cache/genrep_dist``."""
    declared = os.environ.get("GENREP_DATA")
    return Path(declared).expanduser() if declared else Path.home() / ".cache" / "genrep_dist"


def write_to_cache(name: str, files: Mapping[str, bytes], origin: str, cache_dir: Path | None = None) -> Path:
    """Write ``files`` and their manifest to ``<cache>/<name>``, each atomically, the manifest last. Returns that folder.

    ``origin``: the source of the files, for the manifest. ProblemError if the folder cannot be written.
    """
    folder = (cache_dir or cache_folder()) / name
    manifest = {
        "schema": 1,
        "data": name,
        "source": origin,
        "files": {file: {"bytes": len(data), "sha256": sha256(data)} for file, data in files.items()},
    }
    for file, data in files.items():
        write_atomically(folder / file, data)
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    return folder


def read_manifest(name: str, cache_dir: Path | None = None) -> dict[str, Any] | None:
    """The manifest of a data set whose files are in the cache with the right sizes; else None."""
    folder = (cache_dir or cache_folder()) / name
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        complete = all((folder / file).stat().st_size == known["bytes"] for file, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def is_intact(name: str, cache_dir: Path | None = None) -> bool:
    """Whether all files of a data set are in the cache with the digests of its manifest. Reads all of them."""
    manifest = read_manifest(name, cache_dir)
    folder = (cache_dir or cache_folder()) / name
    return manifest is not None and all(sha256(read_bytes(folder / file)) == known["sha256"] for file, known in manifest["files"].items())


def read_cached(name: str, file: str, cache_dir: Path | None = None) -> bytes:
    """One file of a data set. ProblemError if it is missing or its digest is not the manifest's."""
    manifest = read_manifest(name, cache_dir)
    path = (cache_dir or cache_folder()) / name / file
    if manifest is None or file not in manifest["files"]:
        raise ProblemError(
            f"the data set {name} is not in the cache",
            where=str(path.parent),
            expected=f"{file} and {MANIFEST}",
            remedy=f"run `genrep data fetch {name}`",
        )
    data = read_bytes(path)
    expected = manifest["files"][file]["sha256"]
    if sha256(data) != expected:
        raise ProblemError(
            f"the file {file} of {name} is damaged",
            where=str(path),
            expected=f"sha256 {expected}",
            got=f"sha256 {sha256(data)}",
            remedy=f"run `genrep data fetch {name}` to replace it",
        )
    return data


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProblemError(
            "a file cannot be read",
            where=str(path),
            expected="a file",
            got=f"{what_is_at(path)} ({type(error).__name__}: {error.strerror})",
            remedy="correct the path",
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file of the cache by renaming: other processes see the old file or the complete new one. Creates its folder.

    ProblemError if it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp creates files that only their owner can read; a cache may be shared.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise ProblemError(
            "a file of the cache cannot be written",
            where=str(path),
            got=f"{type(error).__name__}: {error}",
            remedy=f"set GENREP_DATA to a writable folder with {len(data) // 10**6 + 1} MB of free space",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
