"""Refactoring changes no byte of the published deletion and points tables of the small experiments in ``tests/unchanged``.

The digests in ``unchanged_results.json`` were taken by running the same experiments at the commit that it names, on a machine whose
floating-point arithmetic is described by ``arithmetic``: the digest of a few products, convolutions and exponentials. Another processor
or another version of torch rounds differently, and there the test is skipped. To take digests on another machine, check out that commit
there and run ``python -m tests.test_unchanged_results`` from this checkout's root with PYTHONPATH set to the other one's.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import genrep_dist as gr
from genrep_dist.store import Store

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "unchanged_results.json").read_text())
EXPERIMENTS = {"smoke": 2, "judge": 2, "grid": 2, "mislabel": 2, "ten-digits": 2}
"""Experiment -> number of seeds."""
FOLDER = Path(__file__).parent / "unchanged"
"""Copies of the experiments as they shipped at the recorded commit: those that ship today may compare more methods."""
TABLES = ("deletion", "points")


def arithmetic() -> str:
    """Digest of float32 results that depend on the processor and on the libraries that compute them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(32, 3, 9, 9, generator=generator)
        weights = torch.randn(8, 3, 3, 3, generator=generator)
        rows, columns = torch.randn(67, 250, generator=generator), torch.randn(250, 131, generator=generator)
        convolved = torch.conv2d(images, weights)
        results = [convolved, rows @ columns, rows.exp(), torch.linalg.cholesky(rows.double() @ rows.T.double() + 1e3 * torch.eye(67))]
        batched = torch.bmm(rows.expand(4, -1, -1).contiguous(), columns.expand(4, -1, -1).contiguous())
        return hashlib.sha256(b"".join(result.numpy().tobytes() for result in [*results, batched])).hexdigest()
    finally:
        torch.set_num_threads(threads)


def digests(experiment: str, store: Path) -> dict[str, str]:
    """sha256 of the published tables of an experiment that runs into ``store``."""
    run = gr.run(
        gr.load_experiment(str(FOLDER / f"{experiment}.yaml"), [f"seeds={EXPERIMENTS[experiment]}"]), store=str(store), serial=True
    )
    objects = Store(str(store)).objects
    return {table: hashlib.sha256(objects.get(f"results/{run.name}/{table}.parquet")).hexdigest() for table in TABLES}


@pytest.mark.skipif(arithmetic() not in RECORDED["digests"], reason="no digests were taken on a machine of this arithmetic")
@pytest.mark.parametrize("experiment", list(EXPERIMENTS))
def test_published_tables_are_those_of_the_recorded_commit(experiment: str, tmp_path: Path) -> None:
    assert digests(experiment, tmp_path) == RECORDED["digests"][arithmetic()][experiment]


def record(commit: str) -> None:
    """Take digests of this machine, and add them to the file."""
    with tempfile.TemporaryDirectory() as folder:
        taken = {experiment: digests(experiment, Path(folder)) for experiment in EXPERIMENTS}
    path = Path(__file__).parent / "unchanged_results.json"
    path.write_text(json.dumps({"commit": commit, "digests": {**RECORDED["digests"], arithmetic(): taken}}, indent=2) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
