from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import LogisticLoss, SquaredLoss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.checks import check_problem, load_datasets, num_outputs
from genrep_dist.problems.protocol import Dataset, Recipe


class Plain:
    """A problem with every part replaceable."""

    def __init__(self, **parts: Any) -> None:
        self.loss: Any = "logistic"
        self.recipe: Any = Recipe(epochs=1, batch_size=2, learning_rate=0.1)
        self.network: Any = nn.Linear(3, 1)
        self.train: Any = (torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2, torch.arange(6))
        self.test: Any = (torch.ones(4, 3), torch.ones(4), torch.arange(4))
        for name, part in parts.items():
            setattr(self, name, part)

    def model(self) -> Any:
        return self.network() if isinstance(self.network, type) else self.network

    def train_data(self) -> Any:
        return self.train

    def test_data(self) -> Any:
        return self.test


class Mapped(Plain):
    """Its inputs are mapped from a file that may only be read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.mapped = np.load(path, mmap_mode="r")

    def train_data(self) -> Any:
        return torch.from_numpy(self.mapped), torch.arange(6) % 2, torch.arange(6)


def test_arrays_mapped_for_reading_are_used_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "inputs.npy", np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32))
    problem = Mapped(tmp_path / "inputs.npy")
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise torch warns of this once in a process
    try:
        train, _ = load_datasets(problem)
    finally:
        torch.set_warn_always(before)
    assert train.inputs.data_ptr() == problem.mapped.ctypes.data, "it is not copied"


def classes(*labels: int) -> Any:
    return torch.ones(len(labels), 3), torch.tensor(labels), torch.arange(len(labels))


def soft(*rows: list[float]) -> Any:
    return torch.ones(len(rows), 3), torch.tensor(rows), torch.arange(len(rows))


class TwoRows(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.zeros(2, len(inputs), 3)


class Failing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ torch.zeros(7, 1)


class WrongDerivative(SquaredLoss):
    name = "mine"

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().derivative(outputs, targets).sum(dim=1)


class OwnLoss(SquaredLoss):
    name = "mine"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"network": nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))},
        {"train": Dataset(torch.ones(2, 3), torch.tensor([0.25, 1.0]), torch.tensor([9, 4]))},
        {"loss": LogisticLoss()},
        {"loss": "softmax", "network": nn.Linear(3, 3), "train": classes(0, 2, 1), "test": classes(2, 2)},
        {"loss": "softmax", "network": nn.Linear(3, 2), "train": soft([0.5, 0.5], [1, 0]), "test": classes(1)},
        {"loss": "squared", "train": soft([7.0], [-3.0]), "test": classes(5)},
        {"loss": "squared", "network": nn.Linear(3, 2), "train": soft([7, 1], [2, 3]), "test": soft([7, 1])},
        {"loss": OwnLoss(), "train": classes(7, -3)},
        {"train": (torch.ones(1, 3), torch.ones(1), torch.zeros(1, dtype=torch.int64))},
    ],
)
def test_fitting_problems_pass(parts: dict[str, Any]) -> None:
    problem = Plain(**parts)
    check_problem(problem, "mine:Plain")
    data, _ = load_datasets(problem)
    assert isinstance(data, Dataset)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"recipe": {"epochs": 3}}, "genrep_dist.Recipe"),
        ({"loss": "hinge"}, "unknown loss"),
        ({"loss": 3}, "loss is not usable"),
        ({"network": lambda: None}, "torch.nn.Module"),
        ({"model": nn.Linear(3, 1)}, None),
        ({"train_data": 5}, "without train_data"),
        ({"model": None}, "without model"),
    ],
)
def test_parts_that_do_not_fit_the_protocol_are_refused(parts: dict[str, Any], message: str | None) -> None:
    if message is None:  # a module is callable, but building a model from it fails
        message = "the model cannot be built"
    with pytest.raises(ProblemError, match=message):
        check_problem(Plain(**parts), "mine:Plain")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [1, 2, 3]}, "a tuple \\(inputs, targets, ids\\)"),
        ({"train": (torch.ones(2, 3), torch.ones(2))}, "a tuple of 2"),
        ({"train": classes(0, 2)}, r"targets in \[0, 1\]"),
        ({"test": classes(0, -1)}, r"test_data(.|\n)*targets in \[0, 1\]"),
        ({"network": nn.Linear(3, 2)}, "one output"),
        ({"loss": "softmax"}, "at least two outputs"),
        ({"loss": "softmax", "network": nn.Linear(3, 2), "train": classes(0, 2)}, "from 0 to 1"),
        ({"loss": "softmax", "network": nn.Linear(3, 2), "train": classes(0, 1), "test": classes(-1)}, "from 0 to 1"),
        (
            {"loss": "softmax", "network": nn.Linear(3, 2), "train": (torch.ones(1, 3), torch.ones(1), torch.arange(1))},
            "integer class numbers",
        ),
        ({"loss": "softmax", "network": nn.Linear(3, 2), "train": soft([0.5, 0.6])}, "distributions"),
        ({"loss": "softmax", "network": nn.Linear(3, 2), "train": soft([1.0])}, "distributions"),
        ({"loss": "squared", "network": nn.Linear(3, 2)}, r"targets \(N, 2\)"),
        ({"loss": "squared", "train": soft([1.0, 2.0])}, r"targets \(N,\)"),
        ({"network": TwoRows()}, "wrong form"),
        ({"network": Failing()}, "fails on inputs(.|\n)*test_checks.py, line"),
        ({"test": (torch.ones(4, 2), torch.ones(4), torch.arange(4))}, "differ in shape or dtype"),
        ({"test": (torch.ones(4, 3).double(), torch.ones(4), torch.arange(4))}, "differ in shape or dtype"),
        ({"loss": WrongDerivative()}, "derivative has a wrong shape"),
    ],
)
def test_data_that_do_not_fit_model_and_loss_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_datasets(Plain(**parts))


def test_bad_numbers_are_refused_with_their_sample() -> None:
    problem = Plain()
    problem.train[0][4, 1] = float("nan")
    with pytest.raises(NonFiniteError, match="sample ids 4"):
        load_datasets(problem)


def test_a_fault_in_the_users_data_is_told_with_its_line() -> None:
    class Faulty(Plain):
        def train_data(self) -> Any:
            return int("nothing")

    with pytest.raises(ProblemError, match=r"ValueError.*test_checks\.py, line"):
        load_datasets(Faulty())


def test_counting_outputs_leaves_the_modes_alone() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4))
    model[0].eval()
    assert num_outputs(model, Dataset(*classes(0, 1))) == 4
    assert [module.training for module in model.modules()] == [True, False, True]
