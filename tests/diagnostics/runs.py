"""Runs for tests of the doctor: problems with and without faults, and functions that damage a store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zarr
from torch import Tensor, nn

import genrep_dist as gr
from genrep_dist.diagnostics import Finding, diagnose, worst_colour
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store.ledger import LedgerRow
from tests.experiments import ROOT, experiment
from tests.toys import Blobs, Rbf, blobs

Array = npt.NDArray[Any]

METHODS = ["ntk-final/tracking", "ntk-final/surrogate", "last-layer-final/tracking", "influence-function", "tracincp", "random"]
FEW = ("power", "amber")
"""Two seeds are too few for an interval, in every run here."""


class Learnable(Blobs):
    """Training and test samples of the same classes, so that there is something to learn."""

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        inputs, labels = blobs(sum(self.sizes), 5, 3, self.num_classes)
        span = slice(0, rows) if seed == 0 else slice(self.sizes[0], None)
        targets = labels.float() if self.num_classes == 2 else labels
        return Dataset(inputs[span], targets[span], first_id + 3 * torch.arange(rows).flip(0))


class LearnableLinear(Learnable):
    """The same, linear in its parameters."""

    def model(self) -> nn.Module:
        return nn.Linear(5, 1 if self.num_classes == 2 else self.num_classes)


class Precise(Learnable):
    """The same in float64."""

    def model(self) -> nn.Module:
        return super().model().double()

    def _data(self, seed: int, rows: int, first_id: int) -> Dataset:
        inputs, targets, ids = super()._data(seed, rows, first_id)
        return Dataset(inputs.double(), targets, ids)


class Regression(Learnable):
    """The same labels as regression targets."""

    def __init__(self, learning_rate: float = 0.1, **options: int) -> None:
        super().__init__(**options)
        self.loss = "squared"
        self.recipe = replace(self.recipe, learning_rate=learning_rate)


class SubtractBatchMean(nn.Module):
    """A layer whose output depends on the other samples of its batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - 0.01 * inputs.mean(dim=0)


class BatchDependent(Learnable):
    """A model whose output depends on the composition of its batch."""

    def model(self) -> nn.Module:
        return nn.Sequential(SubtractBatchMean(), super().model())


LOSES_STATISTICS = "GENREP_TEST_LOSES_STATISTICS"


class FragileBatchNorm(nn.BatchNorm1d):
    """Batch normalisation that loses its running statistics when it is put into evaluation mode, if the environment says so."""

    def train(self, mode: bool = True) -> FragileBatchNorm:
        super().train(mode)
        if not mode and os.environ.get(LOSES_STATISTICS):
            self.running_mean = self.running_var = None
        return self


class Normalised(Learnable):
    """A model with batch normalisation and dropout."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), FragileBatchNorm(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))


class AsymmetricRbf(Rbf):
    """Not a kernel: not symmetric."""

    def __call__(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        return super().__call__(model, left, right) + 0.1 * left.sum(dim=1, keepdim=True)


def run(store: Path, problem: str = "Learnable", options: dict[str, Any] | None = None, **fields: Any) -> gr.Run:
    """A small run of a problem of this module, or of another one by its whole name."""
    defaults: dict[str, Any] = {"methods": METHODS, "deletion": {"fractions": [0.0, 0.1]}}
    place = problem if ":" in problem else f"tests.diagnostics.runs:{problem}"
    asked = experiment(place, {"epochs": 6, "test_size": 40} | (options or {}), **(defaults | fields))
    # Faults that would stop the run are wanted in finished ones.
    return gr.run(asked, store=str(store), serial=True, search_path=[str(ROOT)], force=True)


def copy(original: gr.Run, to: Path) -> gr.Run:
    shutil.copytree(original.store.uri, to)
    return gr.open_run(str(to), original.name)


class Findings(list[Finding]):
    """The findings of one run."""

    def not_green(self) -> set[tuple[str, str]]:
        """(name, colour) of findings that are not green, except that there are few seeds."""
        return {(found.name, str(found.colour)) for found in self if found.colour != "green"} - {FEW}

    def worst_of(self, name: str) -> Finding:
        """The worst finding of that name."""
        found = [finding for finding in self if finding.name == name]
        return next(finding for finding in found if finding.colour == worst_colour(found))


def doctor(run: gr.Run) -> Findings:
    return Findings(diagnose(run))


def change(run: gr.Run, kind: str, key: str, name: str, how: Callable[[Array], object]) -> None:
    """Overwrite an array of the store. Its checksums are updated."""
    array = zarr.open_array(str(Path(run.store.uri) / run.store.artifact(kind, key).path / name), mode="r+")
    values = np.asarray(array[...])
    how(values)
    array[...] = values


def change_manifest(run: gr.Run, kind: str, key: str, **certificate: Any) -> None:
    path = f"{run.store.artifact(kind, key).path}/manifest.json"
    manifest = run.store.objects.get_json(path)
    manifest["certificate"] |= certificate
    run.store.objects.put_json(path, manifest)


def change_ledger(run: gr.Run, chosen: Callable[[dict[str, Any]], bool], how: Callable[[dict[str, Any]], object]) -> int:
    """Rewrite the ledger with some rows changed; how many were."""
    ledger = run.store.ledger(run.plan.keys.training)
    rows = ledger.scan().collect().to_dicts()
    for path in ledger.parts():
        run.store.objects.delete(path)
    touched = 0
    for row in rows:
        row["outputs"] = np.asarray(row["outputs"], dtype=np.float64)
        if chosen(row):
            how(row)
            touched += 1
        del row["num_removed"]
    ledger.write([LedgerRow(**row | {"removed": tuple(row["removed"])}) for row in rows])
    return touched


def drawn_key(run: gr.Run) -> str:
    """The start of the key of the model that is trained again."""
    return doctor(run).worst_of("retraining").text.partition("(key ")[2][:12]


def unexplained(run: gr.Run) -> int:
    """A test row that no seed explains: its outputs are in the ledger, but in no result."""
    explained = {position for seed in run.plan.experiment.seeds for position in run.plan.keys.test_positions(seed)}
    return min(set(range(run.plan.shape.num_test)) - explained)
