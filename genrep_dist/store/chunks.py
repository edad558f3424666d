"""One chunk of a Zarr array as one file on this machine: little-endian values, row-major, then their CRC32C.

These are the bytes that Zarr itself writes and reads with the codecs ``bytes`` (little) and ``crc32c``. Here they go without copies, and
the checksum is computed beside the disk's work.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from genrep_dist.errors import CorruptError
from genrep_dist.store.disk import replacing

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES = 2**22
"""What one thread reads or writes while the other looks at the block before it."""
CHECK_BYTES = 2**18
"""What is looked at in one go, small enough to stay in the processor's cache."""
MAPPED_BYTES = 2**20
"""What is larger is mapped when it is read: copying it would cost more than mapping."""
CHECKSUM_BYTES = 4


def checksum(values: Array) -> int:
    """CRC32C of the bytes of ``values`` (C-contiguous, little-endian), as it stands at the end of their file."""
    return _extend(0, _bytes(values))


def write_chunk(path: Path, values: Array) -> int:
    """Write a whole chunk (C-contiguous, little-endian), read it back, sync it; its checksum. It is at ``path`` whole, or not at all.

    Raises CorruptError when what was read back is not what was written, and OSError.
    """
    data = _bytes(values)
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    with replacing(path) as file, ThreadPoolExecutor(1) as beside:
        written = [beside.submit(_write_all, file, block) for block in blocks]
        crc = _extend(0, data)
        trailer = np.frombuffer(crc.to_bytes(CHECKSUM_BYTES, "little"), dtype=np.uint8)
        written.append(beside.submit(_write_all, file, trailer))
        # The first half is on its way to the disk while the second is still copied to the system's buffers.
        written[len(written) // 2].result()
        os.fdatasync(file)
        for one in written:
            one.result()
        read_back = beside.submit(_checksum_of_file, file, len(data))
        os.fsync(file)
        if read_back.result() != (crc, trailer.tobytes()):
            raise CorruptError("a part read back differs from what was written", where=str(path), remedy="check the disk")
    return crc


def read_chunk(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """A whole chunk, verified, as an array that may be written to and shares nothing. FileNotFoundError where there is none, ValueError for
    damaged bytes, OSError.

    A large one is the file's own pages, mapped, and copied only where they are written to: files of chunks are replaced and never changed.
    """
    kept = dtype.newbyteorder("<")
    size = int(np.prod(shape)) * kept.itemsize
    handle = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(handle).st_size
        if found != size + CHECKSUM_BYTES:
            raise ValueError(f"{path.name} has {found} bytes instead of {size + CHECKSUM_BYTES}")
        data = _mapped(handle, found) if found > MAPPED_BYTES else _filled(handle, found)
    finally:
        os.close(handle)
    crc, stored = _extend(0, data[:size]), int.from_bytes(data[size:].tobytes(), "little")
    if crc != stored:
        raise ValueError(f"stored and computed checksum do not match: {stored:#x} and {crc:#x}")
    return data[:size].view(kept).reshape(tuple(shape)).astype(dtype, copy=False)


def read_window(
    folder: Path, shape: Sequence[int], chunks: Sequence[int], dtype: np.dtype[Any], fill_value: object, window: Sequence[slice]
) -> Array:
    """A window (steps of one) of the array whose chunks lie in ``folder``, writable.

    Where there is no chunk stands ``fill_value``; ValueError where that is None. A window within one chunk takes the memory of that
    chunk, any other its own and that of one chunk. Raises as :func:`read_chunk`.
    """
    spans = [slice(start, max(start, stop)) for start, stop, _ in (part.indices(n) for part, n in zip(window, shape, strict=True))]
    blocks = [range(span.start // size, -(-span.stop // size)) for span, size in zip(spans, chunks, strict=True)]
    sizes = tuple(span.stop - span.start for span in spans)
    result = None
    for block in itertools.product(*blocks) if 0 not in sizes else ():
        corner = [index * size for index, size in zip(block, chunks, strict=True)]
        covered = [slice(max(span.start, at), min(span.stop, at + size)) for span, at, size in zip(spans, corner, chunks, strict=True)]
        try:
            chunk = read_chunk(folder.joinpath(*map(str, block)), chunks, dtype)
        except FileNotFoundError:
            if fill_value is None:
                raise ValueError(f"the file {folder.name}/{'/'.join(map(str, block))} is not there") from None
            chunk = np.full(tuple(chunks), fill_value, dtype=dtype)
        found = chunk[_relative(covered, corner)]
        if all(len(one) == 1 for one in blocks):
            return np.ascontiguousarray(found)
        if result is None:
            result = np.empty(sizes, dtype=dtype)
        result[_relative(covered, [span.start for span in spans])] = found
    return np.empty(sizes, dtype=dtype) if result is None else result


def _relative(window: Sequence[slice], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(part.start - at, part.stop - at) for part, at in zip(window, origin, strict=True))


def first_non_finite(values: Array) -> tuple[int, ...] | None:
    """Index of the first NaN or Inf of a floating-point array."""
    flat = np.ascontiguousarray(values).reshape(-1)
    step = CHECK_BYTES // flat.itemsize
    for start in range(0, flat.size, step):
        fine = np.isfinite(flat[start : start + step])
        if not fine.all():
            return tuple(int(i) for i in np.unravel_index(start + int(fine.argmin()), values.shape))
    return None


def _bytes(values: Array) -> Bytes:
    return values.reshape(-1).view(np.uint8)


def _extend(crc: int, data: Bytes) -> int:
    for start in range(0, len(data), CHECK_BYTES):
        crc = google_crc32c.extend(crc, data[start : start + CHECK_BYTES])
    return crc


def _write_all(handle: int, block: Bytes) -> None:
    done = 0
    while done < len(block):
        done += os.write(handle, block[done:].data)


def _mapped(handle: int, size: int) -> Bytes:
    pages = mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        pages.madvise(mmap.MADV_SEQUENTIAL)
    return np.frombuffer(pages, dtype=np.uint8)


def _filled(handle: int, size: int) -> Bytes:
    data = np.empty(size, dtype=np.uint8)
    done = 0
    while done < size:
        count = os.readv(handle, [data[done:].data])
        if count == 0:
            raise ValueError("the file ends too early")
        done += count
    return data


def _checksum_of_file(handle: int, size: int) -> tuple[int, bytes]:
    """Checksum of the first ``size`` bytes of an open file, and the bytes that follow them."""
    buffer, crc, at = np.empty(CHECK_BYTES, dtype=np.uint8), 0, 0
    while at < size:
        count = os.preadv(handle, [buffer[: size - at].data], at)
        if count == 0:
            break
        crc, at = google_crc32c.extend(crc, buffer[:count]), at + count
    return crc, os.pread(handle, CHECKSUM_BYTES + 1, size)
