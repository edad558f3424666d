"""Readers of IDX files, the format of the MNIST family: a magic number, the dimensions, then the values, all big-endian."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import ProblemError
from genrep_dist.filesystem import FOLDER, what_is_at

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, *, dtype: npt.DTypeLike | None = None, shape: tuple[int | None, ...] | None = None) -> npt.NDArray[Any]:
    """The array of an IDX file, raw or gzip-compressed, as :func:`parse_idx` returns it.

    Also raises ProblemError if the file cannot be read or decompressed.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ProblemError("an IDX file cannot be read", where=str(path), got=f"{type(error).__name__}: {error}") from error
    return parse_idx(data, str(path), dtype=dtype, shape=shape)


def parse_idx(
    data: bytes, where: str, *, dtype: npt.DTypeLike | None = None, shape: tuple[int | None, ...] | None = None
) -> npt.NDArray[Any]:
    """The array of uncompressed IDX bytes, as a copy in native byte order.

    ``dtype`` and ``shape`` (None: any length) are checked if given. ProblemError, naming ``where``, for a wrong magic number, an
    unknown type code, a length that does not match the dimensions, or another dtype or shape.
    """
    if len(data) < 4 or data[:2] != b"\x00\x00" or data[2] not in _DTYPES or data[3] == 0:
        raise ProblemError(
            "not an IDX file",
            where=where,
            expected="two zero bytes, a type code (8, 9, 11, 12, 13 or 14) and a number of dimensions above 0",
            got=f"{len(data)} bytes that start with {data[:4].hex(' ') or 'nothing'}",
        )
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ProblemError("an IDX file ends inside its header", where=where, expected=f"{header} bytes", got=f"{len(data)} bytes")
    found_dtype = np.dtype(_DTYPES[data[2]])
    found_shape = struct.unpack(f">{data[3]}I", data[4:header])
    expected_bytes = header + math.prod(found_shape) * found_dtype.itemsize
    if len(data) != expected_bytes:
        raise ProblemError(
            "the length of an IDX file does not match its dimensions",
            where=where,
            expected=f"{expected_bytes} bytes for {found_dtype.name} {found_shape}",
            got=f"{len(data)} bytes",
            remedy="copy the file again",
        )
    if dtype is not None and found_dtype.newbyteorder("=") != np.dtype(dtype):
        raise ProblemError("an IDX file has a wrong type", where=where, expected=np.dtype(dtype).name, got=found_dtype.name)
    if shape is not None and not _fits(found_shape, shape):
        wanted = "x".join("N" if length is None else str(length) for length in shape)
        raise ProblemError("an IDX file has a wrong shape", where=where, expected=wanted, got="x".join(map(str, found_shape)))
    values = np.frombuffer(data, dtype=found_dtype, offset=header).reshape(found_shape)
    return values.astype(found_dtype.newbyteorder("="))


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(want in (None, have) for have, want in zip(found, expected, strict=True))


def find_idx(folder: Path, name: str) -> Path:
    """The file with a usual name (such as ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``), raw or .gz, in ``folder``.

    Also searches ``raw`` and ``MNIST/raw`` below it. ProblemError if the file is in none of them.
    """
    names = [spelling + suffix for spelling in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for path in (place / one for place in (folder, folder / "raw", folder / "MNIST" / "raw") for one in names):
        if path.is_file():
            return path
    found = what_is_at(folder)
    raise ProblemError(
        "an IDX file is missing",
        where=str(folder),
        expected=f"a folder with {name} or {name}.gz",
        got="no file of that name" if found == FOLDER else found,
        remedy="correct the path of the folder",
    )
