"""The ledger of retrainings: a row is (recipe, seed, removed set) -> predictions on all test points, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from genrep_dist.store.objects import Objects
from genrep_dist.store.tables import get_table, put_table

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("replicate", pa.int64(), nullable=False),
        pa.field("num_removed", pa.int64(), nullable=False),
        pa.field("removed", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("outputs", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ],
    metadata={"genrep.table": "ledger", "genrep.version": "1"},
)


@dataclass(frozen=True)
class LedgerRow:
    """One trained model. ``outputs`` (all test rows, C) float32; ``removed`` sorted ids; ``seconds`` what the training took."""

    key: str
    seed: int
    policy: str
    replicate: int
    removed: tuple[int, ...]
    outputs: npt.NDArray[np.float32]
    seconds: float


class Ledger:
    """Rows of one training identity (data, model, loss, recipe), as Parquet parts that tasks write, one part a task.

    A part's name is the digest of its keys, so a task that runs twice writes the same part twice, and equal rows in different
    parts are harmless: readers keep one.
    """

    def __init__(self, objects: Objects, training: str) -> None:
        self.folder = f"ledger/{training}"
        self._objects = objects

    def write(self, rows: Sequence[LedgerRow]) -> str:
        """Write ``rows`` as one part and return its path."""
        rows = sorted(rows, key=lambda row: row.key)
        table = pa.Table.from_pydict(
            {
                "key": [row.key for row in rows],
                "seed": [row.seed for row in rows],
                "policy": [row.policy for row in rows],
                "replicate": [row.replicate for row in rows],
                "num_removed": [len(row.removed) for row in rows],
                "removed": [list(row.removed) for row in rows],
                "outputs": [row.outputs.astype(np.float32, copy=False).ravel() for row in rows],
                "seconds": [row.seconds for row in rows],
            },
            schema=LEDGER_SCHEMA,
        )
        name = hashlib.sha256("\n".join(row.key for row in rows).encode()).hexdigest()
        path = f"{self.folder}/part-{name}.parquet"
        put_table(self._objects, path, table)
        return path

    def parts(self) -> list[str]:
        return [path for path in self._objects.list(self.folder) if path.endswith(".parquet")]

    def scan(self) -> pl.LazyFrame:
        """All rows, lazily, in no order; a key that two tasks trained may come twice, with equal rows."""
        parts = self.parts()
        if not parts:
            return pl.LazyFrame(schema=_polars_schema())
        if self._objects.root is not None:
            frame = pl.scan_parquet([self._objects.root / path for path in parts])
        else:
            frame = pl.concat([pl.from_arrow(get_table(self._objects, path, LEDGER_SCHEMA)).lazy() for path in parts])  # type: ignore[union-attr]
        return frame

    def keys(self) -> set[str]:
        """Keys of all rows. CorruptError names a part that is truncated or not of this schema."""
        found: set[str] = set()
        for path in self.parts():
            found.update(get_table(self._objects, path, LEDGER_SCHEMA, columns=["key"]).column("key").to_pylist())
        return found


def _polars_schema() -> pl.Schema:
    return pl.from_arrow(LEDGER_SCHEMA.empty_table()).schema  # type: ignore[union-attr]
