"""New test points against a store of features: many queries in one pass, at what share of the bandwidth of plain reads.

A run with features of the last layer of a network is made, once with float32 and once with bfloat16 features, of the same model. Then
`run.explain(..., top=100)` answers new points. Every case is timed twice with the files in the page cache ("warm"), and once after they
were dropped from it ("cold"); one thread multiplies, one reads. "plain reads" read the same files in the same state, 8 MiB at a time,
without checking or converting them. Shares compare bytes a second. The faster of two is shown. Rankings are those of the method
`last-layer-final/target` for 100 of the points: the mean share of the strongest samples of both signs that both stores agree on.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import genrep_dist as gr
from genrep_dist.config import Experiment
from tests.benchmarks import measured_on, publish, table
from tests.benchmarks.scale import INPUTS
from tests.experiments import ROOT


@dataclass(frozen=True)
class Size:
    """A store of features, and the numbers of points that are explained; ``states`` of the page cache."""

    rows: int
    width: int
    points: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    states: tuple[str, ...] = ("warm", "cold")


SIZES = (Size(100_000, 4096, (1, 100, 1000)), Size(1_000_000, 4096, (1, 1000), ("bfloat16",), ("cold",)))
"""The second one does not fit the page cache of the machine."""
TOP, METHOD = 100, "last-layer-final/target"
READ_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Timed:
    elapsed: float
    processor: float


def made(rows: int, width: int, dtype: str, store: str) -> gr.Run:
    fields = {
        "name": f"queries-{dtype}",
        "problem": {"name": "tests.benchmarks.scale:Wide", "options": {"rows": rows, "width": width}},
        "seeds": 1,
        "test_points": 2,
        "methods": [METHOD, "random"],
        "features": {"dtype": dtype},
        "attributions": {"top": TOP},
        "deletion": {"counts": [0]},
        "resources": {"features": "store", "device": "cpu"},
    }
    return gr.run(Experiment.model_validate(fields), store=store, serial=True, search_path=[str(ROOT)], force=True)


def feature_files(run: gr.Run) -> list[Path]:
    keys = run.plan.keys
    folder = Path(run.store.uri) / run.store.artifact("features", keys.features(0, "last-layer", keys.epochs)).path
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > READ_BYTES // 64)


def drop(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> None:
    buffer = bytearray(READ_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def timed(work: Callable[[], Any]) -> Timed:
    began, spent = time.perf_counter(), time.process_time()
    work()
    return Timed(time.perf_counter() - began, time.process_time() - spent)


def fastest(work: Callable[[], Any], files: list[Path], *, cold: bool) -> Timed:
    found = []
    for _ in range(1 if cold else 2):
        if cold:
            drop(files)
        found.append(timed(work))
    return min(found, key=lambda one: one.elapsed)


def measured_rows(case: Size, run: gr.Run, dtype: str) -> Iterator[tuple[str, ...]]:
    files, rows = feature_files(run), case.rows
    size = sum(path.stat().st_size for path in files)
    points = torch.randn(max(case.points), INPUTS, generator=torch.Generator().manual_seed(5))
    run.explain(METHOD, 0, inputs=points[:1], top=TOP)  # opens the data and the model
    for state in case.states:
        cold = state == "cold"
        plain = fastest(lambda cold=cold: read(files), files, cold=cold)  # type: ignore[misc]
        for queries in case.points:
            some = points[:queries]
            found = fastest(lambda some=some: run.explain(METHOD, 0, inputs=some, top=TOP), files, cold=cold)  # type: ignore[misc]
            yield (
                f"{rows:,} x {case.width:,}",
                dtype,
                state,
                f"{queries:,}",
                f"{found.elapsed:.1f}",
                f"{found.processor:.1f}",
                f"{rows / found.elapsed:,.0f}",
                f"{rows * queries / found.elapsed / 1e6:,.1f}",
                f"{size / found.elapsed / 1e9:.2f}",
                f"{size / plain.elapsed / 1e9:.2f}",
                f"{plain.elapsed / found.elapsed:.0%}",
            )


def agreement(runs: list[gr.Run], count: int) -> float:
    points = torch.randn(100, INPUTS, generator=torch.Generator().manual_seed(5))
    kept = [run.explain(METHOD, 0, inputs=points, top=TOP) for run in runs]
    pairs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for sign in ("negative", "positive"):
        first, second = (one[sign][0][:, :count] for one in kept)
        pairs += list(zip(first, second, strict=True))
    return float(np.mean([len(np.intersect1d(a, b)) / count for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/explain_queries.md")
    parser.add_argument("--rows", type=int, help="measure the store of so many rows alone")
    options = parser.parse_args()
    where, rows, rankings = measured_on("torch"), [], []
    for case in SIZES:
        if options.rows not in (None, case.rows):
            continue
        with tempfile.TemporaryDirectory() as store:
            runs = [made(case.rows, case.width, dtype, store) for dtype in case.dtypes]
            for run, dtype in zip(runs, case.dtypes, strict=True):
                rows += list(measured_rows(case, run, dtype))
                sys.stderr.write("\n".join(map(str, rows)) + "\n")
            if len(runs) < 2:
                continue
            shares = [f"{agreement(runs, count):.1%} of the {count}" for count in (10, TOP)]
            rankings.append(f"{case.rows:,} x {case.width:,}: {', '.join(shares)} strongest samples of a point are the same with bfloat16.")
    columns = (
        "store",
        "features",
        "page cache",
        "points",
        "elapsed, s",
        "processor seconds",
        "rows/s",
        "million scores/s",
        "GB/s",
        "plain reads, GB/s",
        "share",
    )
    sections = [" ".join(part.split()) for part in str(__doc__).split("\n\n")]
    publish(
        "explain_queries",
        "Queries against stored features",
        [*sections, where, table(columns, rows), " ".join(rankings)],
        write=options.write,
    )


if __name__ == "__main__":
    main()
