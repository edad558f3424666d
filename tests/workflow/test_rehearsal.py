"""Models that could not be trained or restored are refused at the plan, before anything is trained."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import genrep_dist as gr
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.store import Store
from genrep_dist.training.loop import TrainingRun, predict
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.rehearsal import rehearse
from tests.experiments import ROOT, experiment
from tests.toys import Blobs, blobs

RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.1)


def data(rows: int = 12) -> Dataset:
    inputs, labels = blobs(rows, 5, seed=0)
    return Dataset(inputs, labels.float(), torch.arange(rows))


def rehearsed(factory: Callable[[], nn.Module], rows: int = 12, batch_size: int = 8, **options: Any) -> str:
    recipe = Recipe(epochs=3, batch_size=batch_size, learning_rate=0.1)
    return rehearse(factory, get_loss("logistic"), recipe, data(rows), **options)


class Wrapped(nn.Module):
    """A network that is given its forward pass."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs)
        return result


class Carried(Wrapped):
    """It keeps its last outputs, and with them their graph."""

    def __init__(self) -> None:
        super().__init__(last=torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        self.last: Tensor = super().forward(inputs) + self.last.mean()
        return self.last


class Auxiliary(Wrapped):
    def forward(self, inputs: Tensor) -> Any:
        outputs = super().forward(inputs)
        return {"scores": outputs} if self.training else outputs


class RandomFeatures(Wrapped):
    """Frequencies that the constructor draws, outside the state."""

    def __init__(self, where: str) -> None:
        super().__init__()
        frequencies = torch.randn(5, 5)
        if where == "attribute":
            self.frequencies = frequencies
        else:
            self.register_buffer("frequencies", frequencies, persistent=where == "state")

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.cos(inputs @ self.frequencies))


class RunningMean(Wrapped):
    """A mean that training follows, outside the state."""

    def __init__(self) -> None:
        super().__init__(mean=torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.mean: Tensor = 0.5 * self.mean + 0.5 * inputs.mean(dim=0).detach()
        return super().forward(inputs - self.mean)


class Growing(Wrapped):
    """The first step makes a buffer, or makes it longer."""

    def __init__(self, length: int | None) -> None:
        super().__init__()
        if length is not None:
            self.register_buffer("seen", torch.zeros(length))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.register_buffer("seen", torch.zeros(5))
        return super().forward(inputs)


class Extra(Wrapped):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


class Standardised(Wrapped):
    """Batch statistics of its own: one row has no standard deviation."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs / inputs.std(dim=0) if self.training else inputs)


def failing(self: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    if self.training:
        raise RuntimeError("not in training")


def hooked() -> nn.Module:
    model = Wrapped()
    model.register_forward_pre_hook(failing)
    return model


def instance_norm() -> nn.Module:
    """One value in each channel, whatever the batch."""
    return nn.Sequential(nn.Unflatten(1, (5, 1)), nn.InstanceNorm1d(5), nn.Flatten(), nn.Linear(5, 1))


def masked() -> nn.Module:
    model = Wrapped()
    model.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
    return model


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (Carried, "fails in a step of training"),
        (Auxiliary, "wrong form"),
        (hooked, r"fails in a step of training[\s\S]*not in training"),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.InstanceNorm1d(5), nn.Flatten(), nn.Linear(5, 1)),
            "fails in a step of training",
        ),
        (lambda: RandomFeatures("attribute"), "gives other outputs"),
        (lambda: RandomFeatures("buffer"), "gives other outputs"),
        (RunningMean, "gives other outputs"),
        (lambda: Growing(None), "changes its form"),
        (lambda: Growing(3), "changes its form"),
        (Extra, "cannot be stored"),
        (lambda: Wrapped().bfloat16(), r"'linear.weight'[\s\S]*recipe.precision"),
        (lambda: Wrapped(table=nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)), "cannot be stored"),
        (lambda: nn.Linear(5, 1).requires_grad_(False), "no trainable parameters"),
    ],
)
def test_models_that_are_refused(factory: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        rehearsed(factory)


@pytest.mark.parametrize(
    "factory",
    [
        Wrapped,
        lambda: RandomFeatures("state"),
        lambda: Wrapped(lock=threading.Lock()),
        lambda: Wrapped(table=nn.Parameter(torch.eye(3).to(torch.float8_e4m3fn), requires_grad=False)),
        lambda: Wrapped(table=nn.Parameter(torch.eye(3).bfloat16(), requires_grad=False)),
        lambda: Wrapped(table=nn.Buffer(torch.view_as_complex(torch.randn(4, 2)).conj())),
        masked,
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.GroupNorm(2, 6), nn.Linear(6, 1)),
    ],
)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_models_that_are_not(factory: Callable[[], nn.Module], on_gpu: bool) -> None:
    assert rehearsed(factory, on_gpu=on_gpu) == ""


def test_what_fails_on_a_cpu_may_work_on_a_gpu() -> None:
    assert rehearsed(hooked, on_gpu=True) == ""


def test_a_model_that_trains_alone_is_not_run() -> None:
    model = hooked()
    model.trains_alone = True  # type: ignore[assignment]
    assert rehearsed(lambda: model) == ""


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (batch_norm, r"ValueError: Expected more than 1 value per channel.*1 \(BatchNorm1d\)"),
        (Standardised, "NaN or Inf"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_models_that_need_two_rows(factory: Callable[[], nn.Module], reason: str, batch_size: int) -> None:

    assert re.search(reason, rehearsed(factory, batch_size=batch_size))


def uncopyable(kind: str) -> nn.Module:
    """Networks that ``copy.deepcopy`` refuses once they have run, or always; one that it copies."""
    first = nn.Linear(5, 6)
    if kind == "prune":
        prune.l1_unstructured(first, "weight", 0.3)  # type: ignore[no-untyped-call]
    elif kind == "weight_norm":
        with warnings.catch_warnings(action="ignore"):
            weight_norm(first)
    elif kind == "spectral_norm":
        spectral_norm(first)
    elif kind == "parametrized":
        parametrizations.weight_norm(first)
    else:
        first.held = {"lock": threading.Lock(), "generator": torch.Generator(), "file": sys.stderr}[kind]  # type: ignore[assignment]
    return nn.Sequential(first, nn.Tanh(), nn.Linear(6, 1))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune", "parametrized", "lock", "generator", "file"])
def test_networks_that_cannot_be_copied_are_retrained(kind: str) -> None:
    factory = partial(uncopyable, kind)
    assert rehearsed(factory) == ""
    trainer = Trainer(factory, get_loss("logistic"), RECIPE, data())
    runs = [TrainingRun(Randomness(0), torch.arange(12) != removed) for removed in range(2)]
    size = trainer.pack_size()
    models = [model for start in range(0, 2, size) for model in trainer.train_all(runs[start : start + size])]
    outputs = [predict(model, data().inputs) for model in models if isinstance(model, nn.Module)]
    assert len(outputs) == 2
    assert not torch.equal(*outputs)


class Pruned(Blobs):
    def model(self) -> nn.Module:
        return uncopyable("prune")


def test_a_run_of_a_network_that_cannot_be_copied(tmp_path: Path) -> None:
    asked = experiment("tests.workflow.test_rehearsal:Pruned", seeds=1, methods=["random"], deletion={"fractions": [0.1]})
    found = gr.run(asked, store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert (found.deletion().collect()["delta"] != 0).any()


class Normalised(Blobs):
    def model(self) -> nn.Module:
        return batch_norm()


@pytest.mark.parametrize(
    ("rows", "deletion", "fine"),
    [(17, 0, False), (18, 0, True), (18, 1, False), (19, 2, False), (24, 2, True), (40, 4, True)],
)
def test_a_batch_of_one_row_is_foreseen(tmp_path: Path, rows: int, deletion: int, fine: bool) -> None:
    """Blobs have batches of 8: the last one of an epoch is short, and removals make it shorter."""
    asked = experiment(
        "tests.workflow.test_rehearsal:Normalised", {"train_size": rows}, methods=["random"], deletion={"counts": sorted({0, deletion})}
    )
    if fine:
        prepare(asked, Store(str(tmp_path)), [str(ROOT)])
        return
    with pytest.raises(PlanError, match=r"cannot be trained on a batch of one row[\s\S]*BatchNorm1d[\s\S]*for example [\s\S]*GroupNorm"):
        prepare(asked, Store(str(tmp_path)), [str(ROOT)])
    assert not (tmp_path / "artifacts").exists()
