"""The time to read a ledger of 100,000 retrainings, before and after compaction.

Each row has the outputs of a float32 model for 200 test samples, and up to 25 removed ids; a task writes 25 rows. One store is compacted
and its copy is not. Three operations read both in turn: the keys of all rows, which every run reads before it trains missing models; the
deletion table (50 seeds, 10 methods, 40 test points, 5 fractions, so that every row is requested); and a verification of every byte. The
results are compared. Goal: the keys in under a second after compaction.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.evaluation.removals import REMOVAL_REQUESTS, deletion_table
from genrep_dist.store import Store
from genrep_dist.store.ledger import Ledger, LedgerRow
from genrep_dist.store.ledger_parts import LEDGER_SCHEMA
from tests.benchmarks import measured_on, publish, spread, table

NUM_TRAIN, NUM_TEST, PER_TASK = 250, 200, 25
SEEDS, METHODS, POINTS, COUNTS = range(50), range(10), range(40), (5, 10, 15, 20, 25)
Array = npt.NDArray[np.float64]


def key(seed: int, *removal: int) -> str:
    return hashlib.sha256(repr((seed, *removal)).encode()).hexdigest()


def make_rows(exact: Callable[[Array], Array]) -> Iterator[LedgerRow]:
    """An original for each seed, and its retrainings with slightly different outputs; ``exact`` rounds to the model's dtype."""
    for seed in SEEDS:
        draw = np.random.default_rng(seed)
        original = 2 * draw.normal(size=(NUM_TEST, 1))
        yield LedgerRow(key(seed), seed, "same", 0, (), exact(original), 0.1)
        for method, point, count in itertools.product(METHODS, POINTS, COUNTS):
            removed = tuple(sorted(draw.choice(NUM_TRAIN, count, replace=False).tolist()))
            outputs = exact(original + 0.3 * draw.normal(size=(NUM_TEST, 1)))
            yield LedgerRow(key(seed, method, point, count), seed, "same", 0, removed, outputs, float(draw.random()))


def make_asked() -> pl.DataFrame:
    rows = [
        (s, f"method {m}", p, p, "negative", c / NUM_TRAIN, 0, c, key(s, m, p, c), key(s))
        for s, m, p, c in itertools.product(SEEDS, METHODS, POINTS, COUNTS)
    ]
    return pl.DataFrame(rows, schema=REMOVAL_REQUESTS, orient="row")


def float32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def write_ledger(folder: Path, rows: Iterator[LedgerRow]) -> Ledger:
    ledger = Store(str(folder)).ledger("training")
    while task := list(itertools.islice(rows, PER_TASK)):
        ledger.write(task)
    return ledger


def part_bytes(folder: Path, exact: Callable[[Array], Array]) -> float:
    """Bytes per row in the parts of 100 tasks."""
    ledger = write_ledger(folder, itertools.islice(make_rows(exact), 100 * PER_TASK))
    return sum(Path(folder, path).stat().st_size for path in ledger.parts()) / (100 * PER_TASK)


def plain_bytes(folder: Path) -> float:
    """Bytes per row with float32 outputs and the writer's default encoding."""
    rows = list(itertools.islice(make_rows(float32), 100 * PER_TASK))
    schema = LEDGER_SCHEMA.set(6, pa.field("outputs", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False))
    folder.mkdir()
    for start in range(0, len(rows), PER_TASK):
        task = [vars(row) | {"num_removed": len(row.removed), "outputs": row.outputs.ravel()} for row in rows[start : start + PER_TASK]]
        columns = {name: [row[name] for row in task] for name in schema.names}
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), folder / f"{start}.parquet", compression="zstd")
    return sum(path.stat().st_size for path in folder.iterdir()) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each operation")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/ledger_load.md")
    asked = parser.parse_args()
    where = measured_on("polars", "pyarrow", "obstore")
    wanted = make_asked()
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as temporary:
        folder = Path(temporary)
        sizes = [plain_bytes(folder / "plain"), part_bytes(folder / "32", float32), part_bytes(folder / "64", lambda values: values)]
        as_written = write_ledger(folder / "as written", make_rows(float32))
        shutil.copytree(folder / "as written", folder / "compacted")
        compacted = Store(str(folder / "compacted")).ledger("training")
        before_bytes = sum((folder / "as written" / path).stat().st_size for path in as_written.parts())
        began = time.perf_counter()
        done = compacted.compact()
        compaction_seconds = time.perf_counter() - began
        operations: dict[str, Callable[[Ledger], Any]] = {
            "keys of all rows": lambda ledger: ledger.keys(),
            "the deletion table": lambda ledger: deletion_table(wanted, ledger.scan()),
            "every byte verified": lambda ledger: ledger.move_damaged_parts(),
        }
        took: dict[tuple[str, str], list[float]] = {(name, which): [] for name in operations for which in ("as written", "compacted")}
        for _ in range(asked.rounds):
            for name, operation in operations.items():
                results = []
                for which, ledger in (("as written", as_written), ("compacted", compacted)):
                    began = time.perf_counter()
                    results.append(operation(ledger))
                    took[name, which].append(time.perf_counter() - began)
                # == on DataFrames compares element by element.
                same = results[0].equals(results[1]) if isinstance(results[0], pl.DataFrame) else results[0] == results[1]
                assert same, name
    rows = [
        (
            name,
            spread(took[name, "as written"]),
            spread(took[name, "compacted"]),
            f"{statistics.median(took[name, 'as written']) / statistics.median(took[name, 'compacted']):.0f}",
        )
        for name in operations
    ]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"Seconds: medians of {asked.rounds} runs in turn, quartiles in parentheses. The results of both were equal each time.",
        table(("operation", f"{done.parts_before:,} parts", f"{done.parts_after} parts", "ratio"), rows),
        f"Compaction of {done.rows:,} rows took {compaction_seconds:.1f} seconds and reduced {before_bytes / 2**20:.0f} MiB to "
        f"{done.bytes / 2**20:.0f} MiB.",
        f"Bytes per row in parts of {PER_TASK} rows:",
        table(
            ("outputs", "bytes per row"),
            (
                ("of a float32 model, as float32 in the writer's default encoding", f"{sizes[0]:,.0f}"),
                ("of a float32 model, as the ledger stores them", f"{sizes[1]:,.0f}"),
                ("of a float64 model, as the ledger stores them", f"{sizes[2]:,.0f}"),
            ),
        ),
    ]
    publish("ledger_load", "The cost of a large ledger", sections, write=asked.write)


if __name__ == "__main__":
    main()
