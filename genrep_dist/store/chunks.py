"""Local chunk files of Zarr arrays: little-endian values in row-major order, followed by their CRC32C.

The format is Zarr's own, with the codecs ``bytes`` (little endian) and ``crc32c``. This module avoids copies and computes the checksum
while the disk works.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from genrep_dist.errors import CorruptError
from genrep_dist.store.disk import atomic_write

if TYPE_CHECKING:
    import zarr

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

BLOCK_BYTES = 2**22
"""One thread writes a block of this size while another processes the previous block."""
CHECK_BYTES = 2**18
"""Block size of checks and checksums, small enough for the processor's cache."""
MAPPED_BYTES = 2**20
"""Larger files are memory-mapped when they are read, which is faster than copying them."""
CHECKSUM_BYTES = 4


def checksum(values: Array) -> int:
    """CRC32C of ``values`` (C-contiguous, little-endian), as stored at the end of a chunk file."""
    return _crc32c(_bytes(values))


def write_chunk(path: Path, values: Array) -> int:
    """Write a chunk (C-contiguous, little-endian) atomically and durably, and read it back; its checksum.

    Raises CorruptError if the bytes read back differ from those written, and OSError.
    """
    data = _bytes(values)
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    with atomic_write(path) as file, ThreadPoolExecutor(1) as thread:
        written = [thread.submit(_write_all, file, block) for block in blocks]
        crc = _crc32c(data)
        trailer = np.frombuffer(crc.to_bytes(CHECKSUM_BYTES, "little"), dtype=np.uint8)
        written.append(thread.submit(_write_all, file, trailer))
        # The disk starts with the first half while the second half is still copied to the system's buffers.
        written[len(written) // 2].result()
        os.fdatasync(file)
        for one in written:
            one.result()
        read_back = thread.submit(_checksum_of_file, file, len(data))
        os.fsync(file)
        if read_back.result() != (crc, trailer.tobytes()):
            raise CorruptError("a part read back differs from what was written", where=str(path), remedy="check the disk")
    return crc


def read_chunk(path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """A chunk, verified, as a writable array. FileNotFoundError if there is no file, ValueError for damaged bytes, OSError.

    A large file is mapped copy-on-write. This is safe because chunk files are replaced and never modified.
    """
    stored_dtype = dtype.newbyteorder("<")
    size = int(np.prod(shape)) * stored_dtype.itemsize
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe at this place would wait for a writer
    try:
        found = os.fstat(handle).st_size
        if found != size + CHECKSUM_BYTES:
            raise ValueError(f"{path.name} has {found} bytes instead of {size + CHECKSUM_BYTES}")
        data = _map_file(handle, found) if found > MAPPED_BYTES else _read_file(handle, found)
    finally:
        os.close(handle)
    crc, stored = _crc32c(data[:size]), int.from_bytes(data[size:].tobytes(), "little")
    if crc != stored:
        raise ValueError(f"stored and computed checksum do not match: {stored:#x} and {crc:#x}")
    return data[:size].view(stored_dtype).reshape(tuple(shape)).astype(dtype, copy=False)


def read_window(
    folder: Path, shape: Sequence[int], chunks: Sequence[int], dtype: np.dtype[Any], fill_value: object, window: Sequence[slice]
) -> Array:
    """A writable window (of steps 1) of the array whose chunk files are in ``folder``.

    A missing chunk is read as ``fill_value``; if that is None, it raises ValueError. Memory: one chunk, plus the window if it spans
    several chunks. Raises as :func:`read_chunk`.
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
                raise ValueError(f"the file {folder.name}/{'/'.join(map(str, block))} does not exist") from None
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


def _crc32c(data: Bytes, crc: int = 0) -> int:
    for start in range(0, len(data), CHECK_BYTES):
        crc = google_crc32c.extend(crc, data[start : start + CHECK_BYTES])
    return crc


def _write_all(handle: int, block: Bytes) -> None:
    done = 0
    while done < len(block):
        done += os.write(handle, block[done:].data)


def _map_file(handle: int, size: int) -> Bytes:
    pages = mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        pages.madvise(mmap.MADV_SEQUENTIAL)
    return np.frombuffer(pages, dtype=np.uint8)


def _read_file(handle: int, size: int) -> Bytes:
    data = np.empty(size, dtype=np.uint8)
    done = 0
    while done < size:
        count = os.readv(handle, [data[done:].data])
        if count == 0:
            raise ValueError("the file ends too early")
        done += count
    return data


def _checksum_of_file(handle: int, size: int) -> tuple[int, bytes]:
    """CRC32C of the first ``size`` bytes of an open file, and the stored checksum after them."""
    buffer, crc, at = np.empty(CHECK_BYTES, dtype=np.uint8), 0, 0
    while at < size:
        count = os.preadv(handle, [buffer[: size - at].data], at)
        if count == 0:
            break
        crc, at = google_crc32c.extend(crc, buffer[:count]), at + count
    return crc, os.pread(handle, CHECKSUM_BYTES + 1, size)


def stored_chunks(chunks: Sequence[int]) -> tuple[int, ...]:
    """The chunk shape that is stored for ``chunks``: Zarr has no chunks of size 0, which arrays without elements would have."""
    return tuple(max(1, size) for size in chunks)


def chunk_index(array: zarr.Array[Any], starts: Sequence[int]) -> list[int]:
    return [start // size for start, size in zip(starts, array.chunks, strict=True)]


def padded_chunk(array: zarr.Array[Any], values: Array) -> Array:
    """``values`` as one whole chunk: contiguous, little-endian, padded with the fill value at the edge of the array."""
    values = values.astype(array.dtype.newbyteorder("<"), copy=False)
    if values.shape == tuple(array.chunks):
        return np.ascontiguousarray(values)
    chunk = np.full(array.chunks, array.fill_value, dtype=values.dtype)
    chunk[tuple(map(slice, values.shape))] = values
    return chunk
