"""Compaction of a ledger: merges thousands of small parts into a few, with one row per key."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.ledger_parts import CHANGES_SCHEMA, LEDGER_SCHEMA, get_part, put_part, with_changes
from genrep_dist.store.objects import Objects

PART_BYTES = 64 * 2**20
"""Largest uncompressed size of a merged part, unless one task wrote more. Parts of at least half this size are kept as they are."""
PART_ROWS = 100_000
DUPLICATE_TOLERANCE = 1e-3
"""Largest difference between outputs of one key (absolute, and relative to the output): rounding of different machines."""

Outputs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compaction:
    """Numbers of parts before and after; ``rows`` and ``bytes`` after it."""

    parts_before: int
    parts_after: int
    rows: int
    bytes: int


def compact(objects: Objects, folder: str, paths: list[str]) -> Compaction:
    """Merge the small parts among ``paths`` of the ledger in ``folder``, and keep one row per key.

    The kept row of a key depends on its rows alone: the one with the fewest seconds, among those the one whose outputs have the smallest
    digest. Equal parts give equal bytes. Large parts that lose no row are not rewritten. Memory: one merged part, about 200 bytes per
    row, and the outputs of duplicate rows that differ.

    Readers and writers may run at the same time: a merged part is written, synced and read back before the parts that it replaces are
    deleted, and a kill leaves only duplicate rows. Two compactions of one ledger must not run at the same time.

    Before anything is changed, raises CorruptError that names the part if it is damaged or the rows of a key disagree, and StoreError if
    another process removed a part.
    """
    parts, rows = _read_index(objects, paths)
    kept = {int(part): chosen["row"] for (part,), chosen in _choose_rows(objects, parts, rows).group_by("part", maintain_order=True)}
    merged = [i for i, chosen in kept.items() if len(chosen) < parts[i].rows or not parts[i].is_large]
    after = {parts[i].path: parts[i].size for i in kept.keys() - set(merged)}
    for group in _group(parts, kept, merged):
        tables = [_read_rows(objects, parts[i], kept[i]) for i in group]
        if any(table.schema.equals(CHANGES_SCHEMA) for table in tables):
            tables = [with_changes(table) for table in tables]
        path = put_part(objects, folder, pa.concat_tables(tables).sort_by("key"))
        after[path] = len(get_part(objects, path))
        _delete(objects, {parts[i].path for i in group} - after.keys())
    _delete(objects, {part.path for part in parts} - after.keys())
    return Compaction(len(parts), len(after), sum(map(len, kept.values())), sum(after.values()))


@dataclass(frozen=True)
class _Part:
    """A part and its size in bytes, as it is and without compression."""

    path: str
    rows: int
    size: int
    raw_bytes: int

    @property
    def is_large(self) -> bool:
        return self.rows >= PART_ROWS / 2 or self.raw_bytes >= PART_BYTES / 2


def _read_index(objects: Objects, paths: list[str]) -> tuple[list[_Part], pl.DataFrame]:
    """All parts, verified, and one line per row: key, seconds, number of the part, row in the part."""
    parts: list[_Part] = []
    schema = {"key": pl.String, "seconds": pl.Float64, "part": pl.Int32, "row": pl.Int64}
    rows = [pl.DataFrame(schema=schema)]
    for path in paths:
        data = _get(objects, path)
        with pq.ParquetFile(io.BytesIO(data)) as file:
            raw_bytes = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            table = file.read(columns=["key", "seconds"], use_threads=False)
        rows.append(pl.DataFrame(table).with_columns(part=pl.lit(len(parts)), row=pl.int_range(pl.len())))
        parts.append(_Part(path, table.num_rows, len(data), raw_bytes))
    return parts, pl.concat(rows)


def _choose_rows(objects: Objects, parts: list[_Part], rows: pl.DataFrame) -> pl.DataFrame:
    """(part, row) of the kept row of each key, in the order of parts and rows."""
    duplicates = rows.filter(pl.col("key").is_duplicated())
    digests = [hashlib.sha256(outputs.tobytes()).digest() for outputs in _read_outputs(objects, parts, duplicates)]
    duplicates = duplicates.with_columns(
        pl.Series("digest", digests, dtype=pl.Binary),
        # Of equal rows the one in the largest part is kept: after a kill that is the merged part.
        size=-pl.col("part").replace_strict(range(len(parts)), [part.rows for part in parts], return_dtype=pl.Int64),
    )
    differing = duplicates.filter(pl.col("digest").n_unique().over("key") > 1)
    _check_agreement(differing, _read_outputs(objects, parts, differing), parts)
    chosen = duplicates.sort("key", "seconds", "digest", "size", "part").unique("key", keep="first")
    return pl.concat([frame.select("part", "row") for frame in (rows.filter(pl.col("key").is_unique()), chosen)]).sort("part", "row")


def _check_agreement(rows: pl.DataFrame, outputs: Iterable[Outputs], parts: list[_Part]) -> None:
    """CorruptError if the ``outputs`` of rows of one key differ by more than rounding."""
    bounds: dict[str, tuple[Outputs, Outputs]] = {}
    for key, values in zip(rows["key"], outputs, strict=True):
        low, high = bounds.get(key, (values, values))
        if values.shape == low.shape:
            low, high = np.minimum(low, values), np.maximum(high, values)
            bounds[key] = low, high
        if values.shape != low.shape or (high - low > DUPLICATE_TOLERANCE * (1 + np.abs(high))).any():
            raise CorruptError(
                "two trainings of one removed set disagree",
                where=", ".join(sorted({parts[i].path for i in rows.filter(pl.col("key") == key)["part"]})),
                expected=f"outputs that are equal to {DUPLICATE_TOLERANCE}",
                got=f"other outputs for key {key}",
                remedy="find out which of these parts is wrong, and move it away",
            )


def _read_outputs(objects: Objects, parts: list[_Part], rows: pl.DataFrame) -> Iterator[Outputs]:
    """The outputs of ``rows``, which are sorted by part. Each part is read once."""
    for (part,), chosen in rows.group_by("part", maintain_order=True):
        for value in _read_rows(objects, parts[int(part)], chosen["row"]).column("outputs"):
            yield value.values.to_numpy()


def _read_rows(objects: Objects, part: _Part, rows: pl.Series) -> pa.Table:
    table = pq.read_table(io.BytesIO(_get(objects, part.path)), use_threads=False).take(rows.to_arrow())
    return table.cast(CHANGES_SCHEMA if "labels" in table.column_names else LEDGER_SCHEMA)  # a part may be of an older version


def _group(parts: list[_Part], kept: dict[int, pl.Series], merged: list[int]) -> Iterator[list[int]]:
    """The parts ``merged``, in order, in groups that each become one part."""
    group: list[int] = []
    rows = raw_bytes = 0.0
    for i in merged:
        more_rows = len(kept[i])
        more_bytes = parts[i].raw_bytes * more_rows / parts[i].rows
        if group and (rows + more_rows > PART_ROWS or raw_bytes + more_bytes > PART_BYTES):
            yield group
            group, rows, raw_bytes = [], 0.0, 0.0
        group.append(i)
        rows, raw_bytes = rows + more_rows, raw_bytes + more_bytes
    if group:
        yield group


def _get(objects: Objects, path: str) -> bytes:
    try:
        return get_part(objects, path)
    except FileNotFoundError as error:
        raise StoreError(
            "a part of the ledger vanished during its compaction",
            where=f"{objects.uri}/{path}",
            expected="no other process that compacts this ledger or moves its parts",
            got="no file",
            remedy="compact it again",
        ) from error


def _delete(objects: Objects, paths: Iterable[str]) -> None:
    for path in sorted(paths):
        objects.delete(path)
