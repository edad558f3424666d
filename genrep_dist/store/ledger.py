"""The ledger of retrainings: a row is (recipe, seed, removed set) -> predictions on all test points, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import obstore
import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

from genrep_dist.store.compaction import Compaction, compact
from genrep_dist.store.ledger_parts import LEDGER_SCHEMA, fault, put_part, visit
from genrep_dist.store.objects import Objects
from genrep_dist.store.tables import read_batches


@dataclass(frozen=True)
class LedgerRow:
    """One trained model. ``outputs`` (all test rows, C) float64, which holds what a float32 model computed exactly; ``removed``
    sorted ids; ``seconds`` what the training took.
    """

    key: str
    seed: int
    policy: str
    replicate: int
    removed: tuple[int, ...]
    outputs: npt.NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A part that was put aside: where it was, why, and where it is now."""

    path: str
    reason: str
    aside: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; it lies in {self.aside} now"


class Ledger:
    """Rows of one training identity (data, model, loss, recipe), as Parquet parts that tasks write, one part a task.

    A part is called by the digest of its bytes and is never changed. Equal rows in different parts (a task that ran twice) are
    harmless: readers keep one, and so does ``compact``.
    """

    def __init__(self, objects: Objects, training: str) -> None:
        self.folder = f"ledger/{training}"
        self._objects = objects

    def write(self, rows: Sequence[LedgerRow]) -> str:
        """Write ``rows``, at least one, as one part and return its path."""
        rows = sorted(rows, key=lambda row: row.key)
        table = pa.Table.from_pydict(
            {
                "key": [row.key for row in rows],
                "seed": [row.seed for row in rows],
                "policy": [row.policy for row in rows],
                "replicate": [row.replicate for row in rows],
                "num_removed": [len(row.removed) for row in rows],
                "removed": [list(row.removed) for row in rows],
                "outputs": [row.outputs.astype(np.float64, copy=False).ravel() for row in rows],
                "seconds": [row.seconds for row in rows],
            },
            schema=LEDGER_SCHEMA,
        )
        return put_part(self._objects, self.folder, table)

    def parts(self) -> list[str]:
        """Paths of all parts, sorted; those that were put aside are not among them."""
        aside = f"{self.folder}/refused/"
        return [path for path in self._objects.list(self.folder) if path.endswith(".parquet") and not path.startswith(aside)]

    def scan(self) -> pl.LazyFrame:
        """All rows, lazily, in no order; a key that two tasks trained may come twice, with equal rows.

        Parts are listed when the query runs, and only the asked columns are read, one row group at a time. The query itself
        raises CorruptError, which names the part, for a damaged page and for a part that is truncated, foreign or of another version.
        """
        return register_io_source(self._batches, schema=dict(_polars_schema()), is_pure=True, explain_name=self.folder)

    def keys(self) -> set[str]:
        """Keys of all rows. CorruptError as from :meth:`scan`."""
        found: set[str] = set()
        for batch in visit(self.parts, lambda path: read_batches(self._objects, path, LEDGER_SCHEMA, ["key"])):
            found.update(batch.column("key").to_pylist())
        return found

    def refuse_damaged(self) -> list[Refused]:
        """Verify every byte of every part and put those aside that are truncated, damaged, foreign or of another version.

        They go to ``refused/`` below the ledger, never away; from then on their rows are not in the ledger. An error of the disk
        or the network is raised as it is and puts nothing aside.
        """
        return list(visit(self.parts, self._refuse))

    def compact(self) -> Compaction:
        """Merge small parts into few and keep one row a key; see :func:`genrep_dist.store.compaction.compact`."""
        return compact(self._objects, self.folder, self.parts())

    def _refuse(self, path: str) -> Iterator[Refused]:
        data = self._objects.get(path)
        reason = fault(path, data)
        if reason is not None:
            # A part may be refused twice under one name, with other damage: nothing that was put aside is overwritten.
            name = path.removeprefix(f"{self.folder}/").removesuffix(".parquet").replace("/", "-")
            aside = f"{self.folder}/refused/{name}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
            obstore.rename(self._objects.backend, path, aside)
            yield Refused(path, reason, aside)

    def _batches(
        self, columns: list[str] | None, predicate: pl.Expr | None, num_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        del batch_size
        for batch in visit(self.parts, lambda path: read_batches(self._objects, path, LEDGER_SCHEMA, columns)):
            frame = _polars(batch)
            if predicate is not None:
                frame = frame.filter(predicate)
            if num_rows is not None:
                frame = frame.head(num_rows)
                num_rows -= frame.height
            yield frame
            if num_rows == 0:
                return


def _polars_schema() -> pl.Schema:
    return _polars(LEDGER_SCHEMA.empty_table()).schema


def _polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
