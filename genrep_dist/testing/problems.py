"""A problem whose trainings fail on demand, for tests of executors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from genrep_dist.errors import CorruptError, DamagedArtifact, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe

Fault = Literal["retryable", "fatal", "corrupt", "out_of_memory", "crash"]
DAMAGED = DamagedArtifact("train", "0" * 64)
"""The artifact that a corrupt fault names."""


class FaultyProblem:
    """Two overlapping Gaussian classes and a small network. ``folder``: files that log trainings and request faults."""

    path_options = ("folder",)
    loss = "logistic"
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1)

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def model(self) -> nn.Module:
        return _FaultyModel(self.folder)

    def train_data(self) -> Dataset:
        return _samples(0, 24, 1000)

    def test_data(self) -> Dataset:
        return _samples(1, 8, 5000)


class _FaultyModel(nn.Module):
    """Logs the start of each training by the initial value of its first weight, which identifies the training's seed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.folder, self.started = folder, False
        self.trains_alone = True  # a pack of models would share this log

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and not self.started:
            self.started = True
            log_training(self.folder, repr(float(next(self.parameters()).detach()[0, 0])))
        outputs: Tensor = self.network(inputs)
        return outputs


def log_training(folder: Path, identity: str) -> None:
    """Log the start of a training and raise the fault that was requested for it."""
    with (folder / "trainings").open("a") as log:
        log.write(f"{identity}\n")
    path = folder / "faults.json"
    fault, times = json.loads(path.read_text()).get(identity, (None, 0)) if path.exists() else (None, 0)
    if fault is None or (times is not None and trainings(folder).count(identity) > times):
        return
    if fault == "crash":
        os._exit(1)
    if fault == "out_of_memory":
        raise MemoryError("requested by a test")
    if fault == "fatal":
        raise ProblemError("requested by a test", where="the training", remedy="none")
    if fault == "corrupt":
        raise CorruptError("requested by a test", damaged=DAMAGED)
    raise RuntimeError("requested by a test")


def trainings(folder: Path) -> list[str]:
    """Identities of all trainings so far, in the order in which they started."""
    path = folder / "trainings"
    return path.read_text().split() if path.exists() else []


def _samples(seed: int, count: int, first_id: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = torch.randn(count, 4, generator=generator) + labels.unsqueeze(1)
    return Dataset(inputs, labels.float(), first_id + torch.arange(count))
