"""Models of different shapes, run in this process under several memory budgets; the peak memory of each stage and the plan's, as JSON.

A program of its own (``python -m tests.memory_cases``): peaks are those of the process. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.workflow.prepare import prepare, publish_inputs
from tests.experiments import ROOT, experiment

MIB = 2**20
TRIM = ctypes.CDLL(None).malloc_trim


class Case:
    """``sizes``: training and test samples. ``shape``: of one input; ``outputs``: classes, one logit for 1."""

    sizes, outputs, dtype = (40, 20), 1, torch.float32
    shape: tuple[int, ...] = (8,)
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.01)

    @property
    def loss(self) -> str:
        return "logistic" if self.outputs == 1 else "softmax"

    def model(self) -> nn.Module:
        raise NotImplementedError

    def inputs(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.randn(rows, *self.shape, generator=generator, dtype=self.dtype)

    def train_data(self) -> Dataset:
        return self._data(self.sizes[0], 0)

    def test_data(self) -> Dataset:
        return self._data(self.sizes[1], 10_000)

    def _data(self, rows: int, first: int) -> Dataset:
        inputs, labels = self.inputs(rows, torch.Generator().manual_seed(first)), torch.arange(rows) % max(2, self.outputs)
        return Dataset(inputs, labels.to(self.dtype) if self.outputs == 1 else labels, torch.arange(first, first + rows))


class ManyOutputs(Case):
    """A wide linear model: its features hold C x C numbers a sample."""

    sizes, shape, outputs = (600, 400), (200,), 120

    def model(self) -> nn.Module:
        return nn.Linear(200, 120)


class LargeActivations(Case):
    """A convolution whose activations are sixty-four times as large as an input."""

    sizes, shape, recipe = (16, 500), (1, 48, 48), Recipe(epochs=1, batch_size=4, learning_rate=0.01)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1))


class DoublePrecision(Case):
    """A network in float64, with checkpoints of 25 MB."""

    shape, dtype = (1000,), torch.float64

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(1000, 3000), nn.ReLU(), nn.Linear(3000, 1)).double()


class Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(dim=1)


class LargeVocabulary(Case):
    """Nearly all parameters are in a table of which a batch reads a few rows."""

    shape = (12,)

    def inputs(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.randint(0, 200_000, (rows, 12), generator=generator)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(200_000, 32), Mean(), nn.Linear(32, 1))


class MostlyFrozen(Case):
    """Frozen layers and buffers, which lie in every checkpoint, below a small trained layer."""

    shape, outputs = (2000,), 2

    def model(self) -> nn.Module:
        frozen = nn.Linear(2000, 3000).requires_grad_(False)
        return nn.Sequential(frozen, nn.BatchNorm1d(3000, affine=False), nn.ReLU(), nn.Linear(3000, 2))


class ManyRows(Case):
    """A small model of many rows: grams, what is solved for on them, and the influence kernel by its dual system."""

    sizes, shape = (2400, 50), (20,)

    def model(self) -> nn.Module:
        return nn.Linear(20, 1)


class ManyClasses(Case):
    """More rows of the gram than parameters: the influence kernel by its primal system."""

    sizes, shape, outputs = (3000, 50), (300,), 8

    def model(self) -> nn.Module:
        return nn.Linear(300, 8)


class Convolutions(Case):
    """Kronecker factors of convolutions, a linear layer with three quarters of all parameters, and Jacobians of three outputs."""

    sizes, shape, outputs = (300, 20), (1, 14, 14), 3

    def model(self) -> nn.Module:
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 9, 100), nn.ReLU(), nn.Linear(100, 3))


FEATURES = ["ntk-final/target", "tracincp", "last-layer-final/target"]
SOLVED = ["ntk-final/surrogate", "influence-function"]
PRECONDITIONED = ["ekfac", "datainf"]
CASES: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "ManyOutputs": (FEATURES, (64, 128, 512)),
    "LargeActivations": (FEATURES, (64, 256, 1024)),
    "DoublePrecision": (FEATURES, (64, 256, 1024)),
    "LargeVocabulary": (FEATURES, (64, 256, 1024)),
    "MostlyFrozen": (FEATURES, (64, 256, 1024)),
    "ManyRows": (SOLVED, (512,)),
    "ManyClasses": (["influence-function"], (128,)),
    "Convolutions": (PRECONDITIONED, (256,)),
}
"""Methods and memory budgets in MiB of each case."""


class StagePeaks(ProgressCounter):
    """The peak memory of this process in each stage; "start" is what was before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[str, int] = {}
        self._name = "start"

    def stage(self, name: str, total: int, done: int) -> None:
        self.look(name)
        super().stage(name, total, done)

    def look(self, following: str = "") -> None:
        """Note the peak since the last call. What the allocator keeps of freed memory is no stage's."""
        self.bytes[self._name] = max(self.bytes.get(self._name, 0), status_bytes("VmHWM"))
        self._name = following
        TRIM(0)
        Path("/proc/self/clear_refs").write_text("5")


def status_bytes(field: str) -> int:
    """A number of bytes that Linux reports of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(field)


def run_stages(problem: str, methods: list[str], budget: int, base: int) -> dict[str, Any]:
    """Peak bytes of each stage above ``base``, and of the plan's stages."""
    fields: dict[str, Any] = {
        "seeds": 1,
        "test_points": 1,
        "methods": methods,
        "deletion": {"fractions": [0.0, 0.1], "signs": ["negative"]},
        "influence": {"system": "dual" if problem.endswith("ManyRows") else "auto"},
        "resources": {"memory_budget": budget},
    }
    peaks = StagePeaks()
    peaks.look("start")
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(experiment(problem, **fields), Store(folder), [str(ROOT)])
        publish_inputs(prepared)
        peaks.look()
        StageRunner(prepared, peaks, Workers(prepared.plan.experiment, serial=True)).run()
        peaks.look()
    found = {stage: peak - base for stage, peak in peaks.bytes.items() if stage}
    planned = {stage.name: stage.peak_bytes for stage in prepared.plan.stages}
    return {"case": problem.rpartition(":")[2], "budget": budget, "plan": planned, "found": found}


def main(names: list[str]) -> None:
    # What a first run imports and keeps is not of the models.
    run_stages("tests.toys:Blobs", FEATURES + SOLVED, 2**31, 0)
    for name, (methods, budgets) in CASES.items():
        for budget in budgets if not names or name in names else ():
            TRIM(0)
            base = status_bytes("VmRSS")
            sys.stdout.write(json.dumps(run_stages(f"tests.memory_cases:{name}", methods, budget * MIB, base)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
