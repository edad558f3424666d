"""A run as plain files that any tool reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from genrep_dist.problems.tables import to_table
from genrep_dist.results import Run


def export_run(run: Run, folder: Path, seeds: Sequence[int] | None = None) -> Iterator[Path]:
    """Write ``run`` below ``folder`` and yield the paths written.

    summary.csv, deletion.csv; data/{train,test}.parquet; for every seed (or the given ones) seed-<s>/: test_ids.npy,
    {initial,middle,final}.pt (state dicts, loadable with ``weights_only=True``), and one phi of (N, M) per method as .npy, its
    rows in the order of data/train.parquet. Raises StoreError or NotCommittedError for a run that is not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run.summary().write_csv(folder / "summary.csv")
    yield folder / "summary.csv"
    run.deletion().collect().write_csv(folder / "deletion.csv")
    yield folder / "deletion.csv"
    (folder / "data").mkdir(exist_ok=True)
    for name, dataset in (("train", run.train), ("test", run.test)):
        pq.write_table(to_table(dataset), folder / "data" / f"{name}.parquet", compression="zstd")
        yield folder / "data" / f"{name}.parquet"
    for seed in seeds or run.plan.experiment.seeds:
        place = folder / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        np.save(place / "test_ids.npy", run.test_ids(seed))
        yield place / "test_ids.npy"
        for checkpoint in ("initial", "middle", "final"):
            torch.save(run.checkpoint(seed, checkpoint), place / f"{checkpoint}.pt")
            yield place / f"{checkpoint}.pt"
        for method in run.plan.experiment.methods:
            path = place / f"{method.replace('/', '--')}.npy"
            np.save(path, run.attributions(method, seed))
            yield path
