"""Files that carry a checksum of their own: JSON in its first line, Parquet in the metadata of its footer.

The checksum is the SHA-256 of all other bytes of the file, so a flipped bit anywhere in the file is found. Files of earlier versions have
no such checksum and are read without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from genrep_dist.limits import parse_json

CHECKSUM = "checksum"
"""The first key of a sealed JSON object."""
PARQUET_CHECKSUM = "genrep.sha256"
"""The key of a sealed Parquet file's metadata."""
_UNSET = b"0" * 64
_HEAD = re.compile(rb'\{\n "([^"\n]*)": "([0-9a-f]{64})",')
_FOOTER_LENGTH_BYTES = 8
_MAX_READ_BYTES = 2**20


def seal_json(value: Any) -> bytes:
    """JSON with sorted keys, so that equal values give equal bytes. An object that is not empty gets the key ``checksum``, first."""
    text = json.dumps(value, sort_keys=True, indent=1)
    if not isinstance(value, Mapping) or not value:
        return f"{text}\n".encode()
    rest = f"{text[1:]}\n".encode()
    return f'{{\n "{CHECKSUM}": "{hashlib.sha256(rest).hexdigest()}",'.encode() + rest


def unseal_json(data: bytes) -> Any:
    """The value of :func:`seal_json`, without its checksum. ValueError if ``data`` is not JSON, or not what was sealed."""
    head = _HEAD.match(data)
    found = hashlib.sha256(data[head.end() :]).hexdigest() if head else ""
    value = parse_json(data)
    if head is not None and head[1].decode() == CHECKSUM and head[2].decode() == found:
        del value[CHECKSUM]
    # The second case is a damaged name of the key.
    elif isinstance(value, dict) and (CHECKSUM in value or (head is not None and head[2].decode() == found)):
        raise ValueError("its checksum is not that of its contents")
    return value


def seal_parquet(file: IO[bytes]) -> None:
    """Set the checksum of ``file``, an open Parquet file with the metadata :func:`unset_checksum`. Memory: 1 MiB and the footer."""
    footer, size = _read_footer(file)
    at = size - len(footer) + footer.index(_UNSET, footer.rindex(PARQUET_CHECKSUM.encode()))
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(_MAX_READ_BYTES):
        digest.update(block)
    file.seek(at)
    file.write(digest.hexdigest().encode())
    file.flush()


def unset_checksum() -> dict[str, str]:
    """The metadata that a Parquet file needs to be sealed."""
    return {PARQUET_CHECKSUM: _UNSET.decode()}


def parquet_fault(file: bytes | Path, expected: str | None = None) -> str | None:
    """Why the bytes of a Parquet file, or of the file at a path, are not those that were written; None if they are, or if nothing is known.

    ``expected``: the SHA-256 of the whole file, where that is recorded elsewhere; else the file's own checksum is verified. Memory: 1 MiB
    and the footer. Raises OSError.
    """
    if expected is not None:
        found = _sha256(file)
        return None if found == expected else f"its SHA-256 is {found[:12]}..., {expected[:12]}... was written"
    tail, size = _footer(file)
    key = tail.rfind(PARQUET_CHECKSUM.encode())
    stored = re.search(rb"[0-9a-f]{64}", tail[key:]) if key >= 0 else None
    if stored is None:
        return None if key < 0 else "its checksum is not a SHA-256"
    at = size - len(tail) + key + stored.start()
    found = _sha256(file, at)
    return None if found == stored[0].decode() else f"its checksum is {stored[0].decode()[:12]}..., that of its contents {found[:12]}..."


def _footer(file: bytes | Path) -> tuple[bytes, int]:
    """The footer of a Parquet file with the 8 bytes after it, and the size of the file; empty if the file is too short for one."""
    if isinstance(file, bytes):
        length = int.from_bytes(file[-_FOOTER_LENGTH_BYTES:-4], "little") + _FOOTER_LENGTH_BYTES
        return (file[-length:] if length <= len(file) else b""), len(file)
    with file.open("rb") as opened:
        return _read_footer(opened)


def _read_footer(file: IO[bytes]) -> tuple[bytes, int]:
    """As :func:`_footer`, of an open file."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _FOOTER_LENGTH_BYTES))
    length = int.from_bytes(file.read(4), "little") + _FOOTER_LENGTH_BYTES
    if length > size:
        return b"", size
    file.seek(size - length)
    return file.read(), size


def _sha256(file: bytes | Path, unset_at: int | None = None) -> str:
    """SHA-256 of a file, as if the 64 bytes at ``unset_at`` were zeros (the digit)."""
    digest = hashlib.sha256()
    if isinstance(file, bytes):
        if unset_at is not None:
            file = file[:unset_at] + _UNSET + file[unset_at + len(_UNSET) :]
        digest.update(file)
        return digest.hexdigest()
    with file.open("rb") as opened:
        if unset_at is not None:
            for remaining in range(unset_at, 0, -_MAX_READ_BYTES):
                digest.update(opened.read(min(remaining, _MAX_READ_BYTES)))
            digest.update(_UNSET)
            opened.seek(unset_at + len(_UNSET))
        while block := opened.read(_MAX_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
