"""Dropout and batch normalisation in packs: a model draws and averages as it does alone, bit for bit the same in any company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.datasets.mnist_benchmark import Perceptron
from genrep_dist.problems.protocol import Dataset, Precision, Recipe
from genrep_dist.training.loop import TrainingRun, train, train_models
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.packs.compatibility import training_products, why_not_packed
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.shared import SharedPack, sharing_layers
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.training.reference import RECIPES, parameters_of, plainly_trained
from tests.training.test_stacked_packs import Factory, blob_data, images, some_runs

LOSS = get_loss("logistic")


class Reused(nn.Module):
    """One dropout in two places, which changes its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 1)
        self.dropout = nn.Dropout(0.4, inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.dropout(self.first(inputs)))
        outputs: Tensor = self.third(torch.tanh(self.dropout(self.second(hidden))))
        return outputs


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 7), nn.Dropout(0.1), nn.ReLU(), nn.Linear(7, 1)
    )


def normalized_inputs() -> nn.Module:
    """What takes the batch first belongs to the slots."""
    return nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Dropout(0.2), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6, momentum=None),
        nn.ReLU(),
        nn.Dropout2d(0.2),
        nn.Conv2d(6, 2, 3),
        nn.BatchNorm2d(2, affine=False, momentum=0.3),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(32, 1),
    )


def of_one_channel() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 1))


def without_running_statistics() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Conv1d(8, 5, 3), nn.BatchNorm1d(5), nn.Dropout1d(0.3), nn.ReLU(), nn.Flatten(), nn.Linear(30, 1)
    )


Data = Callable[[torch.dtype], Dataset]
CASES: dict[str, tuple[Factory, Data]] = {
    "perceptron": (perceptron, blob_data),
    "one dropout in two places": (Reused, blob_data),
    "before the first layer": (normalized_inputs, blob_data),
    "images": (convolutions, lambda dtype: images(dtype=dtype)),
    "sequences": (sequences, lambda dtype: images(dtype=dtype)),
    "one channel": (of_one_channel, lambda dtype: images(dtype=dtype)),
}


def runs_on(data: Dataset, count: int, batch_size: int, policy: str = "same") -> list[TrainingRun]:
    """Those of other packs, without any that is left with a batch of one row."""
    found = []
    for run in some_runs(data, 2 * count, batch_size, policy):
        assert run.kept is not None
        orders = [run.randomness.order(epoch, len(data.ids)) for epoch in (1, 2, 3)]
        if not any(int(run.kept[rows].sum()) == 1 for order in orders for rows in torch.split(order, batch_size)):
            found.append(run)
    assert len(found) >= count
    return found[:count]


def state_of(model: nn.Module) -> Tensor:
    """Parameters and buffers."""
    return torch.cat([parameters_of(model), *(buffer.flatten().to(torch.float64) for buffer in model.buffers())])


def trained(kind: type[Pack], factory: Factory, recipe: Recipe, data: Dataset, runs: Sequence[TrainingRun]) -> list[Tensor]:
    models = [run.randomness.build(factory) for run in runs]
    packs = [slice(slot, slot + 1) for slot in range(len(runs))] if kind is Solo else [slice(None)]
    for own in packs:
        assert not any(train_models(models[own], LOSS, recipe, data, runs[own], kind=kind))
    return [state_of(model) for model in models]


EVERY = CASES | {"without running statistics": (without_running_statistics, blob_data)}
"""A trainer refuses the last one, which has no evaluation mode."""


@pytest.mark.parametrize("case", EVERY.values(), ids=list(EVERY))
@pytest.mark.parametrize("recipe", [RECIPES["plain"], RECIPES["all"]], ids=["plain", "all"])
def test_each_slot_is_the_plain_loop_in_float64(case: tuple[Factory, Data], recipe: Recipe) -> None:
    """With its random numbers, and with its running statistics, also of a batch that loses all its rows."""
    factory, make = case
    data = make(torch.float64)

    def double() -> nn.Module:
        return factory().double()

    runs = runs_on(data, 5, recipe.batch_size)
    kinds: list[type[Pack]] = [StackedPack] if sharing_layers(factory()) is None else [StackedPack, SharedPack]
    found = [trained(kind, double, recipe, data, runs) for kind in kinds]
    for slot, run in enumerate(runs):
        assert run.kept is not None
        expected = state_of(plainly_trained(double, "logistic", recipe, data, run.randomness, set(data.ids[~run.kept].tolist())))
        for one in found:
            torch.testing.assert_close(one[slot], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize(("policy", "precision"), [("same", "full"), ("fresh", "full"), ("same", "bfloat16")])
def test_a_model_is_the_same_in_any_company(case: tuple[Factory, Data], policy: str, precision: Precision) -> None:
    """In packs of 1, 2, 7 and 17 models and in any slot; with common random numbers also where a batch is read once."""
    factory, make = case
    data, recipe = make(torch.float32), replace(RECIPES["all"], epochs=2, precision=precision)
    runs = runs_on(data, 17, recipe.batch_size, policy)
    together = trained(StackedPack, factory, recipe, data, runs)
    for start, stop in ((0, 1), (3, 4), (1, 3), (4, 11)):
        found = trained(StackedPack, factory, recipe, data, runs[start:stop])
        assert all(map(torch.equal, found, together[start:stop]))
    assert all(map(torch.equal, trained(StackedPack, factory, recipe, data, runs[::-1][:9]), together[::-1]))
    if policy == "same" and sharing_layers(factory()) is not None:
        assert all(map(torch.equal, trained(SharedPack, factory, recipe, data, runs), together))
    if precision == "full":
        for one, expected in zip(together[:4], trained(Solo, factory, recipe, data, runs[:4]), strict=True):
            torch.testing.assert_close(one, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("batch_size", [8, 32])
def test_such_models_train_in_packs(case: tuple[Factory, Data], batch_size: int) -> None:
    factory, make = case
    data, recipe = make(torch.float32), replace(RECIPES["plain"], batch_size=batch_size)
    trainer = Trainer(factory, LOSS, recipe, data)
    assert (trainer.pack_kind, trainer.solo_reason) == ("stacked", None)
    assert trainer.shares_batches == (sharing_layers(factory()) is not None)
    assert why_not_packed(factory, LOSS, recipe, data, MappedPack) is not None
    runs = runs_on(data, 3, batch_size)
    before = torch.get_rng_state()
    models = trainer.train_all(runs)
    assert torch.equal(before, torch.get_rng_state())
    for run, model in zip(runs, models, strict=True):
        assert isinstance(model, nn.Module)
        assert torch.equal(state_of(model), state_of(trainer.train(run)))


def test_observers_see_the_statistics_of_the_first_model() -> None:
    data, recipe, found = blob_data(torch.float64), RECIPES["plain"], []

    def double() -> nn.Module:
        return perceptron().double()

    for kind in (Solo, StackedPack):
        tracking, checkpoints = TrackingImportance(), Checkpoints([0, 2], data, recipe)
        model, runs = Randomness(3).build(double), [TrainingRun(Randomness(3))]
        train_models([model], LOSS, recipe, data, runs, kind=kind, observers=[tracking, checkpoints])
        assert tracking.alpha is not None
        states = [value.double() for one in checkpoints.saved for value in one.state.values()]
        found.append([tracking.alpha, *states, *(one.outputs for one in checkpoints.saved)])
    for alone, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-11)


class Frozen(nn.Module):
    """Its normalisation keeps the statistics that it was made with."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.BatchNorm1d(4)
        assert norm.running_mean is not None
        norm.running_mean.fill_(0.3)
        self.layers = nn.Sequential(nn.Linear(5, 4), norm, nn.Tanh(), nn.Linear(4, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.layers[1].eval()
        return self


def test_frozen_statistics_stay() -> None:
    data, recipe = blob_data(torch.float64), RECIPES["plain"]

    def double() -> nn.Module:
        return Frozen().double()

    runs = runs_on(data, 3, recipe.batch_size)
    for one, alone in zip(trained(StackedPack, double, recipe, data, runs), trained(Solo, double, recipe, data, runs), strict=True):
        torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-11)
        assert float(one[-9]) == pytest.approx(0.3)


@pytest.mark.parametrize("kind", [StackedPack, SharedPack])
def test_a_batch_of_one_row_is_an_error_of_its_model(kind: type[Pack]) -> None:
    """As it is alone. One image has many values for a channel, and is none."""
    data, pictures, recipe = blob_data(), images(), RECIPES["plain"]
    runs = []
    for rows in (data, pictures):
        kept = torch.ones(len(rows.ids), dtype=torch.bool)
        sole, *lost = Randomness(3).order(1, len(rows.ids))[: recipe.batch_size].tolist()
        kept[lost] = False
        runs.append([TrainingRun(Randomness(3)), TrainingRun(Randomness(3), kept, "a retraining")])
        if rows is data:
            pattern = rf"(?s)one row.*a retraining.*sample id {int(data.ids[sole])}.*Expected more than 1 value.*1 \(BatchNorm1d\)"
    with pytest.raises(ProblemError, match=pattern):
        trained(kind, perceptron, recipe, data, runs[0])
    with pytest.raises(ProblemError, match=pattern):
        trained(Solo, perceptron, recipe, data, runs[0])

    def channels() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 1))

    for one, alone in zip(*(trained(way, channels, recipe, pictures, runs[1]) for way in (kind, Solo)), strict=True):
        torch.testing.assert_close(one, alone, rtol=2e-3, atol=2e-4)


def test_divergence_is_one_models_own() -> None:
    """The row that breaks one model, in a batch with the others' rows, is nothing that they read or average."""
    data = blob_data()
    data.inputs[4] = float("inf")
    without = torch.ones(len(data.ids), dtype=torch.bool)
    without[4] = False
    runs = [TrainingRun(Randomness(2), without, "first"), TrainingRun(Randomness(2), None, "second"), TrainingRun(Randomness(7), without)]
    trainer = Trainer(perceptron, LOSS, RECIPES["momentum"], blob_data())
    assert trainer.pack_kind == "stacked"
    models = [run.randomness.build(perceptron) for run in runs]
    errors = train_models(models, LOSS, RECIPES["momentum"], data, runs, kind=StackedPack)
    assert isinstance(errors[1], NonFiniteError)
    assert (errors[0], errors[2]) == (None, None)
    for slot in (0, 2):
        alone = trained(StackedPack, perceptron, RECIPES["momentum"], data, [runs[slot]])
        assert torch.equal(state_of(models[slot]), alone[0])


class TwoNames(nn.Module):
    """A layer that is registered twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layers = nn.Sequential(nn.Linear(5, 4), self.norm, nn.Linear(4, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(inputs)
        return outputs


def test_what_else_draws_or_averages_trains_alone() -> None:
    class Own(nn.BatchNorm1d):
        pass

    data, recipe = blob_data(), RECIPES["plain"]
    for layer, reason in (
        (Own(4), "mixes the samples"),
        (nn.AlphaDropout(0.2), "random numbers"),
        (nn.SyncBatchNorm(4), "mixes the samples"),
    ):
        factory = _around(layer)
        assert reason in str(why_not_packed(factory, LOSS, recipe, data))
        assert training_products(factory, recipe) == ""
    assert Trainer(TwoNames, LOSS, recipe, data).pack_kind == "solo"


def _around(layer: nn.Module) -> Factory:
    return lambda: nn.Sequential(nn.Linear(5, 4), layer, nn.Linear(4, 1))


def test_they_have_a_key_of_their_own() -> None:
    """Their numbers are others than those of models that train alone, as all of them did before."""
    recipe = RECIPES["plain"]
    assert {training_products(factory, recipe) for factory, _ in CASES.values()} == {"stateful"}
    assert training_products(Perceptron, recipe) == "stateful"
    assert training_products(lambda: nn.Sequential(nn.Linear(64, 2), nn.Dropout(0.5)), recipe) == "narrow stateful"
    assert training_products(lambda: nn.Sequential(nn.Linear(64, 2), nn.Dropout(0.0)), recipe) == "narrow"
    assert training_products(lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(), nn.Dropout(0.5), nn.Linear(4, 1)), recipe) == ""


def test_training_alone_is_as_before() -> None:
    """A single model draws from the default generators."""
    data, recipe = blob_data(), RECIPES["plain"]
    model = train(Randomness(9).build(perceptron), LOSS, recipe, data, Randomness(9))
    torch.testing.assert_close(state_of(model), state_of(plainly_trained(perceptron, "logistic", recipe, data, Randomness(9))))
