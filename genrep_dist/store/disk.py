"""Durable writes to a local or shared file system. Every function raises OSError if the file system fails."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE = "GENREP_PRIVATE_STORE"
"""The environment variable by which stores are readable by their owner alone."""


def create_root(path: Path) -> None:
    """Create the folder of a store, if it does not exist.

    With GENREP_PRIVATE_STORE=1 it has mode 0700, and this process creates all files with 0600, also those of MLflow and other libraries:
    its umask is changed. PermissionError for an existing folder that others may enter.
    """
    private = os.environ.get(PRIVATE, "0") not in ("", "0")
    path.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    if not private:
        return
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        raise PermissionError(f"{PRIVATE} is set and others may enter this folder, mode {mode:04o}: chmod -R go= it, or unset {PRIVATE}")
    os.umask(os.umask(0o077) | 0o077)


def write_file(path: Path, data: bytes) -> None:
    """Write or replace ``path`` atomically and durably. Costs two fsyncs, and one for each new folder."""
    with atomic_write(path) as handle:
        done = 0
        while done < len(data):
            done += os.write(handle, memoryview(data)[done:])
        os.fsync(handle)


@contextmanager
def atomic_write(path: Path) -> Iterator[int]:
    """An open temporary file, which the caller writes and syncs. At the end it is renamed to ``path`` and the folder is synced.

    After an exception the temporary file is removed and ``path`` is unchanged.
    """
    make_folder(path.parent)
    # Obstore uses the same suffix, # and digits, for temporary files, and does not list them.
    temporary = path.with_name(f"{path.name}#{secrets.randbelow(10**12)}")
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            yield handle
        finally:
            os.close(handle)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write ``path`` durably if it does not exist; whether it was written."""
    make_folder(path.parent)
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    _sync(path.parent)
    return True


def free_space(folder: Path | None) -> str:
    """The free bytes of the disk of ``folder``, and whether it can hold more files, as text for a message."""
    place = folder or "."
    try:
        text = f"{shutil.disk_usage(place).free:,} bytes are free"
        files = os.statvfs(place) if hasattr(os, "statvfs") else None
    except OSError as error:
        return f"free space unknown: {error}"
    # File systems without a table of inodes report 0 of 0.
    if files is not None and files.f_files and not files.f_favail:
        return f"its inode table is full: it holds {files.f_files:,} files and folders and no more, although {text}"
    return text


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def sync_files(files: Iterable[Path], root: Path) -> None:
    """Sync files, then every folder from ``root`` down to them, each once."""
    folders: set[Path] = set()
    for path in files:
        _sync(path)
        folders.update(folder for folder in path.parents if folder.is_relative_to(root))
    for folder in sorted(folders, reverse=True):
        _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
