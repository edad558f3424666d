"""Limits for files that are not ours: score files, exports, experiment files, and all files of a store that others may write into.

A file is refused by name before anything large is allocated for it: by what it claims, in size, depth and number.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MAX_TEXT_BYTES = 2**28
"""Of a JSON file: as much as the ids of ten million samples take."""
MAX_DEPTH = 100
"""Of nested lists and mappings in JSON and YAML."""
MAX_ARRAYS = 10_000
"""In one archive or folder."""
MAX_COLUMNS = 1_000_000
"""In one table: a table of scores has a column for each sample of one side."""
SMALL_BYTES = 2**28
"""Below this, free memory is not asked for."""


class LimitError(ValueError):
    """A file claims more than what is read of files that are not ours."""


def require_fits(num_bytes: int, what: str) -> None:
    """Raise LimitError if ``what`` would take more than half of the free memory."""
    if num_bytes > SMALL_BYTES and num_bytes > (available := psutil.virtual_memory().available) // 2:
        raise LimitError(f"{what} takes {num_bytes:,} bytes, and {available:,} bytes of memory are free")


def require_count(count: int, what: str, most: int = MAX_ARRAYS) -> None:
    """Raise LimitError for more than ``most`` of ``what``."""
    if count > most:
        raise LimitError(f"{count:,} {what}, where at most {most:,} are read")


def check_parquet(metadata: pq.FileMetaData) -> None:
    """Raise LimitError for a table that claims more rows than memory holds: a few bytes of Parquet can stand for any number of them."""
    require_count(metadata.num_columns, "columns", MAX_COLUMNS)
    require_fits(metadata.num_rows * metadata.num_columns * 8, "the table")
    require_fits(sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)), "the table")


def parse_json(text: bytes | str) -> Any:
    """Plain data of JSON. ValueError for what is not JSON, LimitError for what is too long or too deep."""
    if len(text) > MAX_TEXT_BYTES:
        raise LimitError(f"{len(text):,} bytes of JSON, where at most {MAX_TEXT_BYTES:,} are read")
    try:
        return json.loads(text)
    except RecursionError:
        raise LimitError("lists and mappings in lists and mappings, too deep to be read") from None


def read_json(path: Path) -> Any:
    """Plain data of a JSON file. Raises as :func:`parse_json`, and OSError."""
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise LimitError(f"{size:,} bytes of JSON, where at most {MAX_TEXT_BYTES:,} are read")
    return parse_json(path.read_bytes())
