"""The influence kernel by its primal system, where the dual one would not fit: logistic regressions on random data, as a run computes them.

Each case runs in a process of its own, on one thread as a worker does: the original model is trained, then the kernel of 50 test points is
computed and certified. The dual system's memory is that of its plan. Goal: 5,000 samples of 784 numbers in 10 classes in less than a
minute and 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from typing import Any

import torch
from torch import nn

from genrep_dist.config import Experiment
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.training.threads import one_thread
from genrep_dist.workflow.prepare import prepare, publish_inputs
from tests.benchmarks import measured_on, peak_bytes, publish, table
from tests.experiments import ROOT

CASES = ((5000, 784, 10), (50_000, 20, 2), (20_000, 100, 10))
"""Training samples, numbers of an input, and classes, two of them on one logit."""


class Random:
    """A logistic regression on random data."""

    def __init__(self, rows: int, width: int, classes: int) -> None:
        self.sizes, self.loss = (rows, width, classes), "logistic" if classes == 2 else "softmax"
        self.recipe = Recipe(epochs=1, batch_size=500, learning_rate=0.01)

    def model(self) -> nn.Module:
        _, width, classes = self.sizes
        return nn.Linear(width, 1 if classes == 2 else classes)

    def train_data(self) -> Dataset:
        return self._data(0, self.sizes[0])

    def test_data(self) -> Dataset:
        return self._data(1, 500)

    def _data(self, seed: int, rows: int) -> Dataset:
        generator, (_, width, classes) = torch.Generator().manual_seed(seed), self.sizes
        labels = torch.randint(classes, (rows,), generator=generator)
        inputs = torch.rand(rows, width, generator=generator)
        return Dataset(inputs, labels.float() if classes == 2 else labels, torch.arange(rows) + seed * 10**6)


def asked(rows: int, width: int, classes: int, system: str) -> Experiment:
    fields = {
        "name": "influence",
        "problem": {"name": "tests.benchmarks.influence_systems:Random", "options": {"rows": rows, "width": width, "classes": classes}},
        "seeds": 1,
        "test_points": 50,
        "methods": ["influence-function", "random"],
        "influence": {"damping": 0.01, "system": system},
    }
    return Experiment.model_validate(fields)


def run(case: tuple[int, int, int]) -> dict[str, Any]:
    """Seconds, residual and peak memory of the kernel's unit, and the plan's memory for both systems. In a fresh process."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        dual = prepare(asked(*case, "dual"), Store(folder), [str(ROOT)]).plan
        prepared = prepare(asked(*case, "auto"), Store(folder), [str(ROOT)])
        publish_inputs(prepared)
        before = peak_bytes()
        StageRunner(prepared, ProgressCounter(), Workers(prepared.plan.experiment, serial=True)).run()
        keys = prepared.plan.keys
        manifest = prepared.store.artifact("kernel", keys.kernel(0, "influence", keys.epochs)).manifest()
        planned = [next(stage.peak_bytes for stage in plan.stages if stage.name == "influence") for plan in (prepared.plan, dual)]
    peak = peak_bytes()
    return {"manifest": manifest, "planned": planned, "peak": peak, "before": before}


def measure(case: tuple[int, int, int]) -> tuple[str, ...]:
    """A row of the table."""
    command = [sys.executable, "-m", "tests.benchmarks.influence_systems", "--case", json.dumps(case)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)
    rows, width, classes = case
    certificate = found["manifest"]["certificate"]
    gram = rows * (1 if classes == 2 else classes)
    return (
        f"{rows:,} samples, {width} numbers, {classes} classes",
        f"{certificate['size']:,}",
        f"{found['manifest']['seconds']:.1f}",
        f"{found['peak'] / 2**20:,.0f} ({found['before'] / 2**20:,.0f})",
        f"{found['planned'][0] / 2**20:,.0f}",
        f"{certificate['residual']:.1e}",
        f"{gram:,}",
        f"{found['planned'][1] / 2**30:,.1f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/influence_systems.md")
    parser.add_argument("--case", help="one case, as JSON, in this process")
    options = parser.parse_args()
    if options.case:
        sys.stdout.write(json.dumps(run(tuple(json.loads(options.case)))))
        return
    where = measured_on("torch")
    columns = (
        "case",
        "rows of the primal system",
        "seconds",
        "peak of the process, MiB (before)",
        "plan, MiB",
        "residual",
        "rows of the dual system",
        "its plan, GiB",
    )
    sections = [" ".join(str(__doc__).split()), where, table(columns, [measure(case) for case in CASES])]
    publish("influence_systems", "Influence by the primal system", sections, write=options.write)


if __name__ == "__main__":
    main()
