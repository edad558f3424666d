"""The ledger of retrainings. One row is one trained model: (recipe, seed, change of the training set) -> outputs on all test samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from genrep_dist.core.changes import Change, Labels, Weights
from genrep_dist.errors import DamagedFile
from genrep_dist.store.compaction import Compaction, compact
from genrep_dist.store.damage_notes import forget
from genrep_dist.store.lease import Lease
from genrep_dist.store.ledger_parts import CHANGES_SCHEMA, LEDGER_SCHEMA, find_damage, put_part, read_part, read_parts
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import LedgerPaths
from genrep_dist.store.tables import open_table

_OLDEST = pl.CompatLevel.oldest()
"""Arrow's string and list types, as in the ledger's schemas."""


@dataclass(frozen=True)
class LedgerRow:
    """One trained model. ``removed``: sorted sample ids. ``outputs`` (T, C): of all test samples. ``seconds``: of the training.

    ``weights`` and ``labels`` as in a :class:`Change`.
    """

    key: str
    seed: int
    policy: str
    replicate: int
    removed: tuple[int, ...]
    outputs: npt.NDArray[np.float64]
    seconds: float
    weights: Weights = ()
    labels: Labels = ()


@dataclass(frozen=True)
class DamagedPart:
    """A damaged part that was moved from ``path`` to ``moved_to``."""

    path: str
    reason: str
    moved_to: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; it was moved to {self.moved_to}"


class Ledger:
    """Rows of one training identity (data, model, loss, recipe), in Parquet parts. Each task writes one part.

    A part is named by the digest of its bytes and never changed. Tasks that ran twice leave equal rows in two parts: readers keep one,
    and so does :meth:`compact`.
    """

    def __init__(self, objects: Objects, training: str) -> None:
        self._objects, self._paths = objects, LedgerPaths(training)
        self.folder = self._paths.folder
        self._keys_of_parts: dict[str, list[str]] = {}

    def write(self, rows: Sequence[LedgerRow]) -> str:
        """Write at least one row as one part; its path."""
        rows = sorted(rows, key=lambda row: row.key)
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in rows] for name in ("key", "seed", "policy", "replicate", "seconds")
        }
        columns["removed"] = [list(row.removed) for row in rows]
        columns["num_removed"] = [len(Change(row.removed, row.weights, row.labels)) for row in rows]
        columns["outputs"] = [row.outputs.astype(np.float64, copy=False).ravel() for row in rows]
        if not any(row.weights or row.labels for row in rows):
            return put_part(self._objects, self.folder, _to_arrow(columns, LEDGER_SCHEMA))
        for ids, values in (("reweighted", "weights"), ("relabelled", "labels")):
            columns[ids], columns[values] = ([[pair[part] for pair in getattr(row, values)] for row in rows] for part in (0, 1))
        return put_part(self._objects, self.folder, _to_arrow(columns, CHANGES_SCHEMA))

    def parts(self) -> list[str]:
        """Paths of all parts, sorted, without damaged parts that were moved away."""
        return [path for path in self._objects.list(self.folder) if self._paths.is_part(path)]

    def scan(self) -> pl.LazyFrame:
        """All rows, lazily, in no order. A key that two tasks trained may occur twice, with equal rows.

        Parts are listed when the query runs. Only the selected columns are kept in memory, one row group at a time. The query raises
        CorruptError for a part whose bytes are not those that were written, and StoreError for one of a newer version.
        """
        return register_io_source(self._read_frames, schema=_polars_types(LEDGER_SCHEMA), is_pure=True)

    def keys(self) -> set[str]:
        """Keys of all rows. Raises CorruptError as :meth:`scan`, but reads and verifies only what holds the keys.

        Parts never change: a second call reads only new ones.
        """
        return set(read_parts(self.parts, self._read_keys))

    def changes(self, keys: Collection[str]) -> dict[str, Change]:
        """What the models of ``keys`` were trained with, by key: removals, and other weights and labels."""
        return dict(read_parts(self.parts, lambda path: self._read_changes(path, frozenset(keys))))

    def _read_changes(self, path: str, keys: frozenset[str]) -> Iterator[tuple[str, Change]]:
        import pyarrow.compute as pc  # counting models does without

        with open_table(self._objects, path, check_bytes=False) as file:
            names = set(file.schema_arrow.names)
        columns = [name for name in ("key", "removed", "reweighted", "weights", "relabelled", "labels") if name in names]
        wanted = pl.Series(sorted(keys), dtype=pl.String).to_arrow(compat_level=_OLDEST).cast(pa.string())
        for table in read_part(self._objects, path, columns, check_bytes=False):
            for row in table.filter(pc.is_in(table.column("key"), wanted)).to_pylist():
                weights = tuple(zip(row.get("reweighted", ()), row.get("weights", ()), strict=True))
                labels = tuple(zip(row.get("relabelled", ()), map(tuple, row.get("labels", ())), strict=True))
                yield row["key"], Change(tuple(row["removed"]), weights, labels)

    def _read_keys(self, path: str) -> Iterator[str]:
        if path not in self._keys_of_parts:
            tables = read_part(self._objects, path, ["key"], check_bytes=False)
            self._keys_of_parts[path] = [key for table in tables for key in table.column("key").to_pylist()]
        yield from self._keys_of_parts[path]

    def move_damaged_parts(self) -> list[DamagedPart]:
        """Verify every byte of every part and move damaged parts to a folder of their own. Their rows then have to be retrained.

        An error of the disk or network is raised and moves nothing.
        """
        return list(read_parts(self.parts, self._move_if_damaged))

    def compact(self) -> Compaction:
        """Merge small parts and keep one row per key. See :func:`genrep_dist.store.compaction.compact`."""
        return compact(self._objects, self.folder, self.parts())

    def compact_alone(self) -> Compaction:
        """As :meth:`compact`, after waiting for any other process that compacts this ledger."""
        with Lease(self._objects, self._paths.compaction_lease):
            return self.compact()

    def _move_if_damaged(self, path: str) -> Iterator[DamagedPart]:
        data = self._objects.get(path)
        reason = find_damage(path, data)
        if reason is not None:
            # The digest of the damaged bytes is in the name, because a part may be damaged twice in different ways.
            target = self._paths.damaged_part(path, hashlib.sha256(data).hexdigest()[:16])
            self._objects.move(path, target)
            forget(self._objects, DamagedFile(path))
            yield DamagedPart(path, reason, target)

    def _read_tables(self, columns: list[str] | None, *, check_bytes: bool = True) -> Iterator[pa.Table]:
        return read_parts(self.parts, lambda path: read_part(self._objects, path, columns, check_bytes=check_bytes))

    def _read_frames(
        self, columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        for batch in self._read_tables(columns):
            frame = _to_polars(batch)
            if predicate is not None:
                frame = frame.filter(predicate)
            if num_rows is not None:
                frame = frame.head(num_rows)
                num_rows -= frame.height
            yield frame
            if num_rows == 0:
                return


def _to_arrow(columns: Mapping[str, list[Any]], schema: pa.Schema) -> pa.Table:
    """By polars, because pyarrow imports pandas when it reads lists."""
    types = _polars_types(schema)
    frame = pl.DataFrame({name: columns[name] for name in types}, schema=types)
    return frame.to_arrow(compat_level=_OLDEST).cast(schema)


def _polars_types(schema: pa.Schema) -> dict[str, pl.DataType]:
    return dict(_to_polars(pa.Table.from_batches([], schema)).schema)


def _to_polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
