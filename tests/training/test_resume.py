"""Trainings that are killed and go on from a saved state: the same bits as without, in every kind of pack and in a user's own function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.image_models import SmallCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.results import Run
from genrep_dist.runner.run import run as run_experiment
from genrep_dist.training.function_trainer import FunctionTrainer
from genrep_dist.training.loop import TrainingRun
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.resume import encoded
from genrep_dist.training.trainer import Trainer
from tests.experiments import experiment
from tests.own_training import Free, bce
from tests.toys import Blobs
from tests.training.reference import parameters_of

EPOCHS = 5


class Killed(BaseException):
    pass


class Memory:
    """States by name. Every state is due; the process "dies" after ``kill_after`` of them."""

    def __init__(self, kill_after: int | None = None) -> None:
        self.states: dict[str, bytes] = {}
        self.saved, self.kill_after = 0, kill_after

    def __call__(self, name: str) -> OneState:
        return OneState(self, name)


class OneState:
    def __init__(self, memory: Memory, name: str) -> None:
        self.memory, self.name = memory, name

    def load(self) -> bytes | None:
        return self.memory.states.get(self.name)

    def is_due(self) -> bool:
        return True

    def save(self, state: bytes) -> None:
        self.memory.states[self.name] = state
        self.memory.saved += 1
        if self.memory.saved == self.memory.kill_after:
            raise Killed


class Average(nn.Module):
    """Random numbers, statistics of batches, and an average of parameters that its forward pass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)
        self.head, self.average = nn.Linear(8, 1), nn.Linear(8, 1).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.linear(inputs.flatten(1)))))
        if self.training:
            with torch.no_grad():
                self.average.weight.lerp_(self.head.weight, 0.1)
        outputs: Tensor = self.head(hidden) + 0.5 * self.average(hidden)
        return outputs


class Slope(nn.Module):
    """A layer without a stacked counterpart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.slope, self.head = nn.Linear(64, 8), nn.PReLU(), nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.slope(self.linear(inputs.flatten(1))))
        return outputs


def stateful() -> nn.Module:
    """Random numbers and statistics of batches in layers that are stacked."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


SGD = Recipe(epochs=EPOCHS, batch_size=8, learning_rate=0.1)
ADAM = Recipe(epochs=EPOCHS, batch_size=8, learning_rate=0.01, optimizer="adam", schedule="cosine")
CASES: dict[str, tuple[Callable[[], nn.Module], Recipe, str]] = {
    "solo": (Average, Recipe(epochs=EPOCHS, batch_size=8, learning_rate=0.1, momentum=0.9), "solo"),
    "stacked": (SmallCNN, ADAM, "stacked"),
    "shared": (SmallCNN, SGD, "stacked"),
    "stateful": (stateful, ADAM, "stacked"),
    "mapped": (Slope, ADAM, "mapped"),
}


def data() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(36, 1, 8, 8, generator=generator)
    return Dataset(inputs, (torch.rand(36, generator=generator) > 0.5).float(), torch.arange(36))


def runs(policy: str) -> list[TrainingRun]:
    found = []
    for index in range(3):
        kept = torch.ones(36, dtype=torch.bool)
        kept[5 * index : 5 * index + 4] = False
        removed = torch.nonzero(~kept).flatten().tolist()
        found.append(TrainingRun(Randomness.for_retraining(3, policy, removed), kept, f"model {index}"))
    return found


def parameters(models: list[Any]) -> list[Tensor]:
    return [torch.cat([parameters_of(model), *(b.flatten().float() for b in model.buffers())]) for model in models]


@pytest.mark.parametrize("policy", ["same", "fresh"])
@pytest.mark.parametrize("name", CASES)
def test_it_goes_on_with_the_same_bits(name: str, policy: str) -> None:
    factory, recipe, kind = CASES[name]
    trainer = Trainer(factory, get_loss("logistic"), recipe, data())
    assert trainer.pack_kind == kind
    expected = parameters(trainer.train_all(runs(policy)))
    memory = Memory(kill_after=3)
    with pytest.raises(Killed):
        trainer.train_all(runs(policy), memory)
    memory.kill_after, before = None, memory.saved
    torch.rand(7)  # the default generators are elsewhere in a new process
    found = parameters(trainer.train_all(runs(policy), memory))
    assert all(map(torch.equal, found, expected))
    # A single model at a time: the first one goes on after three epochs, the others have all of theirs before them.
    whole = EPOCHS - 1
    assert memory.saved - before == (whole - 3 + 2 * whole if kind == "solo" else whole - 3)


@pytest.mark.parametrize("state", [b"", b"PK" * 50, encoded([1]), encoded([2, [torch.zeros(3)]]), encoded({"epoch": 1})])
def test_what_is_no_state_of_this_training_is_not_used(state: bytes) -> None:
    factory, recipe, _ = CASES["stacked"]
    trainer = Trainer(factory, get_loss("logistic"), recipe, data())
    memory = Memory()
    expected = parameters(trainer.train_all(runs("same"), memory))
    memory.states = dict.fromkeys(memory.states, state)
    assert all(map(torch.equal, parameters(trainer.train_all(runs("same"), memory)), expected))


def resumable(model: Any, kept: Any, run: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state = run.saved_state()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(0 if state is None else state["epoch"], EPOCHS):
        for inputs, targets, _ in run.batches(4):
            optimizer.zero_grad()
            bce(model(inputs + 0.1 * torch.randn_like(inputs)).squeeze(1), targets).backward()
            optimizer.step()
        run.save_state({"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()})


def test_a_function_of_the_users_own_goes_on() -> None:
    problem: Any = Free(resumable)
    trainer = FunctionTrainer(problem, resumable, get_loss("logistic"), problem.recipe, problem.train_data(), epochs=EPOCHS)
    one = [TrainingRun(Randomness(5), None, "one")]
    expected = parameters(trainer.train_all(one))
    memory = Memory(kill_after=2)
    with pytest.raises(Killed):
        trainer.train_all(one, memory)
    memory.kill_after = None
    assert torch.equal(parameters(trainer.train_all(one, memory))[0], expected[0])
    assert memory.saved == EPOCHS


def test_a_state_that_could_not_be_read_again_is_refused() -> None:
    def wrong(model: Any, kept: Any, run: Any) -> None:
        run.save_state({"loader": Memory()})

    problem: Any = Free(wrong)
    trainer = FunctionTrainer(problem, wrong, get_loss("logistic"), problem.recipe, problem.train_data(), epochs=EPOCHS)
    (error,) = trainer.train_all([TrainingRun(Randomness(5), None, "one")], Memory())
    assert "save_state" in str(error)


class Dying(nn.Module):
    """Counts its passes in training in a file, and stops the process at one of them."""

    def __init__(self, inner: nn.Module, log: Path, at: int) -> None:
        super().__init__()
        self.inner, self.log, self.at, self.trains_alone = inner, log, at, True

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            with self.log.open("ab") as file:
                file.write(b".")
            if self.log.stat().st_size == self.at:
                raise KeyboardInterrupt
        result: Tensor = self.inner(inputs)
        return result


class DyingBlobs(Blobs):
    path_options = ("folder",)

    def __init__(self, folder: str, at: int = 0, **options: int) -> None:
        super().__init__(**options)
        self.log, self.at = Path(folder) / "passes", at

    def model(self) -> nn.Module:
        return Dying(super().model(), self.log, self.at)


def test_a_run_goes_on_within_a_retraining_and_leaves_no_state(tmp_path: Path) -> None:
    def run(store: str, at: int) -> Run:
        return run_experiment(
            experiment(
                "tests.training.test_resume:DyingBlobs",
                {"folder": str(tmp_path), "at": at},
                seeds=[0],
                test_points=1,
                methods=["random"],
                deletion={"fractions": [0.0, 0.1]},
                recipe={"epochs": 8},
                resources={"checkpoint_seconds": 1e-9},
            ),
            str(tmp_path / store),
            serial=True,
        )

    log = tmp_path / "passes"
    whole = run("whole", 0)
    passes = log.stat().st_size
    log.unlink()
    steps = -(-whole.plan.shape.num_train // whole.plan.keys.recipe["batch_size"])
    at = passes - steps - 1  # in the only retraining, near its end
    with pytest.raises(KeyboardInterrupt):
        run("killed", at)
    assert list(tmp_path.glob("killed/ledger/*/unfinished/*.state"))
    found = run("killed", at)
    assert found.deletion().collect().equals(whole.deletion().collect())
    assert not list(tmp_path.glob("killed/ledger/*/unfinished/*.state"))
    assert 0 < log.stat().st_size - at <= 4 * steps, "not the whole training"
