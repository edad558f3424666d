"""Arrays that all processes of one user on one machine share: files that are written once and mapped into memory by each process.

The pages of a mapped file are in memory once, whatever the number of processes, and the system drops those that are not used. The files
are copies of what the store has: each can be deleted at any time, also while it is in use.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Form = tuple[np.dtype[Any], tuple[int, ...]]
"""dtype and shape of an array."""

KEPT_SECONDS = 3 * 86_400
"""Files that no process has opened for so long are deleted when another one is written."""


def shared_arrays(name: str, forms: Mapping[str, Form], parts: Callable[[], Iterator[Mapping[str, Array]]]) -> dict[str, Array] | None:
    """The arrays of these ``forms``, by their names, mapped from the files of ``name``. None where no such files can be written.

    ``parts()`` yields consecutive rows of all arrays, and is called where there are no files yet, by one process at a time. What a process
    writes into an array is its own. Memory: one part, and those pages of the files that the system keeps.
    """
    try:
        folder = _folder()
        with _only_process(folder / f"{name}.lock"):
            found = _mapped(folder, name, forms)
            if found is None:
                _delete_old(folder)
                _write(folder, name, forms, parts())
                found = _mapped(folder, name, forms)
            return found
    except OSError:  # no such folder, a full disk: each process then has a copy of its own
        return None


def delete_shared(name: str) -> None:
    """Delete the files of ``name``, if there are any. Processes that have mapped them go on."""
    with suppress(OSError):
        for path in _folder().glob(f"{name}.*"):
            path.unlink(missing_ok=True)


def _folder() -> Path:
    """``GENREP_SCRATCH``, or a folder of this user below the one for temporary files. OSError if it is another user's."""
    declared = os.environ.get("GENREP_SCRATCH")
    own = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(declared) if declared else Path(tempfile.gettempdir()) / f"genrep-dist-{own}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not declared and own != "" and (found.st_uid != own or stat.S_ISLNK(found.st_mode) or found.st_mode & 0o077):
        raise PermissionError(f"{folder} is open to other users")
    return folder


@contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Inside, no other process is; where the system has no such locks, both write the same files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file(folder: Path, name: str, part: str) -> Path:
    return folder / f"{name}.{part}.npy"


def _mapped(folder: Path, name: str, forms: Mapping[str, Form]) -> dict[str, Array] | None:
    """The arrays, if all files are there and whole."""
    found: dict[str, Array] = {}
    for part, (dtype, shape) in forms.items():
        path = _file(folder, name, part)
        try:
            array = np.load(path, mmap_mode="c")
            os.utime(path)
        except (OSError, ValueError, EOFError):
            return None
        if array.dtype != dtype or array.shape != shape:
            return None
        found[part] = array
    return found


def _write(folder: Path, name: str, forms: Mapping[str, Form], parts: Iterator[Mapping[str, Array]]) -> None:
    """Write the files under temporary names and rename them, synced: after a power failure a file of a name is whole."""
    temporary = {part: _file(folder, name, part).with_suffix(f".{secrets.token_hex(4)}.part") for part in forms}
    try:
        with ExitStack() as stack:
            # By plain writes: a full disk is an error of a write, and would end the process in a mapped file.
            files: dict[str, IO[bytes]] = {part: stack.enter_context(path.open("wb")) for part, path in temporary.items()}
            for part, (dtype, shape) in forms.items():
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[part], header)
            for some in parts:
                for part, file in files.items():
                    file.write(np.ascontiguousarray(some[part]).data)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        for part, path in temporary.items():
            path.replace(_file(folder, name, part))
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _delete_old(folder: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for path in (*folder.glob("*.npy"), *folder.glob("*.part"), *folder.glob("*.lock")):
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()
