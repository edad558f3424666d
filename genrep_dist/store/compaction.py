"""Compaction of a ledger: thousands of small parts become a few, with one row a key."""

from __future__ import annotations

import contextlib
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
from genrep_dist.store.ledger_parts import get_part, put_part
from genrep_dist.store.objects import Objects

PART_BYTES = 64 * 2**20
"""No merged part holds more uncompressed numbers, unless one task wrote more. A part of half of this is left as it is."""
PART_ROWS = 100_000
DUPLICATE_TOLERANCE = 1e-3
"""Two rows of one key may differ by this much (absolute, and relative to the output): rounding of different machines."""


@dataclass(frozen=True)
class Compaction:
    """What became of the parts that were there: ``rows`` and ``bytes`` are those of the parts after it, one row a key."""

    parts_before: int
    parts_after: int
    rows: int
    bytes: int


def compact(objects: Objects, folder: str, paths: list[str]) -> Compaction:
    """Merge the small ones of the parts ``paths`` of ``folder``, and drop all rows but one of each key.

    Which row of a key stays depends on the rows alone: the one that took the fewest seconds, of those the one whose outputs have
    the smallest digest. Equal parts give equal bytes. Large parts that lose no row stay as they are, so that compacting again costs
    little. Memory: one merged part, some 200 bytes a row, and the outputs of keys whose rows differ.

    Safe at any moment beside readers and writers: a merged part is written, synced and read back before the parts that it replaces
    are deleted, and what a kill leaves are rows that come twice. Two compactions of one ledger must not run at the same time.

    Raises CorruptError, which names the part, when one is damaged or the rows of a key disagree: before anything is changed.
    StoreError when somebody else removes a part meanwhile.
    """
    parts, rows = _survey(objects, paths)
    kept = {int(part): chosen["row"] for (part,), chosen in _one_a_key(objects, parts, rows).group_by("part", maintain_order=True)}
    left = {i: len(chosen) for i, chosen in kept.items()}
    complete = {i for i, part in enumerate(parts) if left.get(i, 0) == part.rows}
    loose = [i for i, part in enumerate(parts) if left.get(i, 0) and not (i in complete and part.is_large)]
    after = {part.path: part.size for i, part in enumerate(parts) if left.get(i, 0) and i not in loose}
    for group in _groups(parts, loose, left):
        path = _merge(objects, folder, [(parts[i], kept[i]) for i in group])
        after[path] = len(get_part(objects, path))
        _delete(objects, {parts[i].path for i in group} - after.keys())
    _delete(objects, {part.path for part in parts} - after.keys())
    return Compaction(len(parts), len(after), sum(left.values()), sum(after.values()))


@dataclass(frozen=True)
class _Part:
    """A part and its sizes; ``raw_bytes`` before compression."""

    path: str
    rows: int
    size: int
    raw_bytes: int

    @property
    def is_large(self) -> bool:
        return self.rows >= PART_ROWS / 2 or self.raw_bytes >= PART_BYTES / 2


def _survey(objects: Objects, paths: list[str]) -> tuple[list[_Part], pl.DataFrame]:
    """All parts, verified; and all rows (key, seconds, part, row): which part, by its number, and which of its rows."""
    parts: list[_Part] = []
    rows: list[pl.DataFrame] = []
    for path in paths:
        data = _get(objects, path)
        with pq.ParquetFile(io.BytesIO(data)) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            table = file.read(columns=["key", "seconds"], use_threads=False)
        rows.append(pl.DataFrame(table).with_columns(part=pl.lit(len(parts)), row=pl.int_range(pl.len())))
        parts.append(_Part(path, table.num_rows, len(data), sum(group.total_byte_size for group in groups)))
    schema = {"key": pl.String, "seconds": pl.Float64, "part": pl.Int32, "row": pl.Int64}
    return parts, pl.concat([pl.DataFrame(schema=schema), *rows])


def _one_a_key(objects: Objects, parts: list[_Part], rows: pl.DataFrame) -> pl.DataFrame:
    """(part, row) of the row of each key that stays, in the order of parts and rows."""
    twice = rows.filter(pl.col("key").is_duplicated())
    digests = [hashlib.sha256(outputs.tobytes()).digest() for outputs in _outputs(objects, parts, twice)]
    twice = twice.with_columns(
        pl.Series("digest", digests, dtype=pl.Binary),
        # Of equal rows the one in the largest part stays: after a kill that is the merged one.
        size=-pl.col("part").replace_strict(range(len(parts)), [part.rows for part in parts], return_dtype=pl.Int64),
    )
    differing = twice.filter(pl.col("digest").n_unique().over("key") > 1)
    _refuse_disagreement(differing, _outputs(objects, parts, differing), parts)
    chosen = twice.sort("key", "seconds", "digest", "size", "part").unique("key", keep="first")
    return pl.concat([frame.select("part", "row") for frame in (rows.filter(pl.col("key").is_unique()), chosen)]).sort("part", "row")


def _refuse_disagreement(rows: pl.DataFrame, outputs: Iterable[npt.NDArray[np.float64]], parts: list[_Part]) -> None:
    """CorruptError when the ``outputs`` of rows of one key differ by more than rounding: none of them can be trusted more."""
    bounds: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
    for key, values in zip(rows["key"], outputs, strict=True):
        low, high = bounds.get(key, (values, values))
        if values.shape == low.shape:
            low, high = np.minimum(low, values), np.maximum(high, values)
            bounds[key] = low, high
        if values.shape != low.shape or (high - low > DUPLICATE_TOLERANCE * (1 + np.abs(high))).any():
            where = sorted({parts[i].path for i in rows.filter(pl.col("key") == key)["part"]})
            raise CorruptError(
                "two trainings of one removed set disagree",
                where=", ".join(where),
                expected=f"outputs that are equal to {DUPLICATE_TOLERANCE}",
                got=f"others for key {key}",
                remedy="find out which of these parts is wrong, and move it away",
            )


def _outputs(objects: Objects, parts: list[_Part], rows: pl.DataFrame) -> Iterator[npt.NDArray[np.float64]]:
    """The outputs of ``rows``, which are in the order of parts, one after the other; each part is read once."""
    for (part,), chosen in rows.group_by("part", maintain_order=True):
        column = _rows(objects, parts[int(part)], chosen["row"]).column("outputs")
        for value in column:
            yield value.values.to_numpy()


def _merge(objects: Objects, folder: str, chosen: list[tuple[_Part, pl.Series]]) -> str:
    """Write the chosen rows of some parts as one part, sorted by key; its path."""
    return put_part(objects, folder, pa.concat_tables([_rows(objects, part, rows) for part, rows in chosen]).sort_by("key"))


def _rows(objects: Objects, part: _Part, rows: pl.Series) -> pa.Table:
    return pq.read_table(io.BytesIO(_get(objects, part.path)), use_threads=False).take(rows.to_arrow())


def _groups(parts: list[_Part], loose: list[int], left: dict[int, int]) -> Iterator[list[int]]:
    """``loose`` parts, in order, in groups that make one merged part each."""
    group: list[int] = []
    rows = raw_bytes = 0.0
    for i in loose:
        more = parts[i].raw_bytes * left[i] / parts[i].rows
        if group and (rows + left[i] > PART_ROWS or raw_bytes + more > PART_BYTES):
            yield group
            group, rows, raw_bytes = [], 0.0, 0.0
        group.append(i)
        rows, raw_bytes = rows + left[i], raw_bytes + more
    if group:
        yield group


def _get(objects: Objects, path: str) -> bytes:
    try:
        return get_part(objects, path)
    except FileNotFoundError as error:
        raise StoreError(
            "a part of the ledger vanished while it was compacted",
            where=f"{objects.uri}/{path}",
            expected="nobody else who compacts this ledger, or moves its parts away",
            remedy="compact it again",
        ) from error


def _delete(objects: Objects, paths: Iterable[str]) -> None:
    for path in sorted(paths):
        with contextlib.suppress(FileNotFoundError):
            objects.delete(path)
