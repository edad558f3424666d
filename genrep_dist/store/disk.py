"""Files on this machine, or on a shared file system, that are on the disk when a call returns."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, data: bytes) -> None:
    """Write ``data`` under another name, sync it, rename it to ``path`` and sync its folder: after a power failure the file is there
    whole, or as it was before. Costs two fsyncs, and one more for each folder that had to be made. Raises OSError.
    """
    with replacing(path) as handle:
        done = 0
        while done < len(data):
            done += os.write(handle, memoryview(data)[done:])
        os.fsync(handle)


@contextmanager
def replacing(path: Path) -> Iterator[int]:
    """An open file under another name, to be written and synced inside; it is renamed to ``path`` at the end, and its folder synced.

    Raises OSError. After any exception nothing is left and ``path`` is as it was.
    """
    make_folder(path.parent)
    # Digits after a # are what obstore, too, takes for a file that is being written and does not list.
    aside = path.with_name(f"{path.name}#{secrets.randbelow(10**12)}")
    handle = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            yield handle
        finally:
            os.close(handle)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path``, synced, if there is no such file; whether there was none. Raises OSError."""
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


def free_text(folder: Path | None) -> str:
    """How much room the disk has under ``folder``, for a message."""
    try:
        return f"{shutil.disk_usage(folder or '.').free:,} bytes are free"
    except OSError as error:
        return f"the free space is not known: {error}"


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each of them synced into its parent."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _sync(path.parent)


def sync_files(paths: Iterable[Path], root: Path) -> None:
    """Sync files that others wrote, and every folder that leads to them from ``root``, each once."""
    folders: set[Path] = set()
    for path in paths:
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
