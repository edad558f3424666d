"""Models that share their steps: equal to the solo loop to rounding, and to themselves bit for bit, whoever shares with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.image_models import SmallCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import TrainingRun, predict, train, train_models
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.packs.compatibility import why_not_packed
from genrep_dist.training.packs.mapped import MappedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.toys import Blobs
from tests.training.reference import RECIPES, parameters_of, plainly_trained, sentences

Factory = Callable[[], nn.Module]


def images(num_rows: int = 45, num_classes: int = 2, dtype: torch.dtype = torch.float32, channels: int = 1) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(num_rows, channels, 8, 8, generator=generator).to(dtype)
    classes = torch.randint(0, num_classes, (num_rows,), generator=generator)
    return Dataset(inputs, classes.to(dtype) if num_classes == 2 else classes, 3 * torch.arange(num_rows).flip(0) + 100)


def some_runs(data: Dataset, count: int, batch_size: int, policy: str = "same") -> list[TrainingRun]:
    """Runs without nothing, a few rows, many of them, and the whole of one batch."""
    runs = []
    for index in range(count):
        kept = torch.ones(len(data.ids), dtype=torch.bool)
        if index % 4 == 3:
            kept[Randomness(5).order(2, len(data.ids))[batch_size : 2 * batch_size]] = False
        else:
            lost = (index % 4) * len(data.ids) // 5
            kept[torch.randperm(len(data.ids), generator=torch.Generator().manual_seed(index))[:lost]] = False
        removed = data.ids[~kept].tolist()
        runs.append(TrainingRun(Randomness.for_retraining(5, policy, removed, replicate=index), kept, f"model {index}"))
    return runs


def packed(factory: Factory, loss: str, recipe: Recipe, data: Dataset, runs: Sequence[TrainingRun]) -> list[Tensor]:
    models = [run.randomness.build(factory) for run in runs]
    assert train_models(models, get_loss(loss), recipe, data, runs, kind=StackedPack) == [None] * len(runs)
    return [parameters_of(model) for model in models]


def solo(factory: Factory, loss: str, recipe: Recipe, data: Dataset, runs: Sequence[TrainingRun]) -> list[Tensor]:
    models = [run.randomness.build(factory) for run in runs]
    for model, run in zip(models, runs, strict=True):
        train(model, get_loss(loss), recipe, data, run.randomness, kept=run.kept)
    return [parameters_of(model) for model in models]


def small_cnn() -> nn.Module:
    return SmallCNN()


def ten_classes() -> nn.Module:
    return SmallCNN(10)


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=(2, 1), dilation=(2, 1)),
        nn.ReLU(inplace=True),
        nn.GroupNorm(3, 6),
        nn.Conv2d(6, 4, (1, 2), bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(5),
        nn.LayerNorm(5),
        nn.Linear(5, 1),
    )


def strided_built() -> nn.Module:
    model = strided()
    model(torch.zeros(1, 3, 8, 8))
    return model


def text() -> nn.Module:
    return TextCNN(vocabulary_size=3000, channels=(6, 5, 7))


def multilayer() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))


def frozen_below() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 1, bias=False))
    model[0].requires_grad_(False)
    return model


def blob_data(dtype: torch.dtype = torch.float32) -> Dataset:
    data = Blobs(train_size=37).train_data()
    return Dataset(data.inputs.to(dtype), data.targets.to(dtype), data.ids)


def float_text(dtype: torch.dtype = torch.float32) -> Dataset:
    data = sentences(37)
    return Dataset(data.inputs, data.targets.to(dtype), data.ids)


CASES: dict[str, tuple[Factory, str, Callable[[torch.dtype], Dataset]]] = {
    "small cnn": (small_cnn, "logistic", lambda dtype: images(dtype=dtype)),
    "ten classes": (ten_classes, "softmax", lambda dtype: images(num_classes=10, dtype=dtype)),
    "strides, dilation, norms": (strided_built, "logistic", lambda dtype: images(dtype=dtype, channels=3)),
    "text": (text, "logistic", float_text),
    "multilayer": (multilayer, "squared", blob_data),
    "frozen below": (frozen_below, "logistic", blob_data),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_each_slot_is_the_solo_run_in_float64(case: tuple[Factory, str, Callable[[torch.dtype], Dataset]], recipe: Recipe) -> None:
    factory, loss, make = case
    data = make(torch.float64)

    def double() -> nn.Module:
        return factory().double()

    runs = some_runs(data, 5, recipe.batch_size)
    found = packed(double, loss, recipe, data, runs)
    for one, expected in zip(found, solo(double, loss, recipe, data, runs), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-11)
    removed = set(data.ids[~runs[3].kept].tolist()) if runs[3].kept is not None else set()
    plain = plainly_trained(double, loss, recipe, data, runs[3].randomness, removed)
    torch.testing.assert_close(found[3], parameters_of(plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("policy", ["same", "fresh"])
def test_a_model_is_the_same_whoever_shares_its_steps(case: tuple[Factory, str, Callable[[torch.dtype], Dataset]], policy: str) -> None:
    """In float32: near the solo loop, and bit for bit in packs of 1, 2, 7 and 32, in any company and in any slot."""
    factory, loss, make = case
    data, recipe = make(torch.float32), RECIPES["all"]
    runs = some_runs(data, 32, recipe.batch_size, policy)
    together = packed(factory, loss, recipe, data, runs)
    for size in (1, 2, 7):
        for start in range(0, 3 * size, size):
            some = runs[start : start + size]
            found = packed(factory, loss, recipe, data, some)
            assert all(torch.equal(a, b) for a, b in zip(found, together[start : start + size], strict=True))
    backwards = packed(factory, loss, recipe, data, runs[::-1][:9])
    assert all(torch.equal(a, b) for a, b in zip(backwards, together[::-1], strict=False))
    for one, expected in zip(together[:4], solo(factory, loss, recipe, data, runs[:4]), strict=True):
        torch.testing.assert_close(one, expected, rtol=2e-3, atol=2e-4)


@settings(max_examples=15, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=0, max_size=3),
    batch_size=st.integers(1, 40),
    num_rows=st.integers(3, 45),
    size=st.integers(1, 6),
    removed=st.integers(0, 2),
    outputs=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5]),
)
def test_small_networks_of_any_width(
    widths: list[int], batch_size: int, num_rows: int, size: int, removed: int, outputs: int, momentum: float
) -> None:
    inputs = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(num_rows))
    targets = inputs[:, :outputs] if outputs > 1 else inputs[:, 0]
    data = Dataset(inputs, targets, torch.arange(num_rows))
    recipe = Recipe(epochs=2, batch_size=batch_size, learning_rate=0.05, momentum=momentum)

    def factory() -> nn.Module:
        sizes = [4, *widths, outputs]
        layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    runs = []
    for index in range(size):
        kept = torch.ones(num_rows, dtype=torch.bool)
        kept[index % num_rows : index % num_rows + removed] = False
        runs.append(TrainingRun(Randomness(index % 2), kept))
    together = packed(factory, "squared", recipe, data, runs)
    for run, one in zip(runs, together, strict=True):
        assert torch.equal(one, packed(factory, "squared", recipe, data, [run])[0])
        torch.testing.assert_close(one, solo(factory, "squared", recipe, data, [run])[0], rtol=1e-3, atol=1e-5)


def test_a_removed_row_cannot_matter_even_where_it_is_not_finite() -> None:
    data = images()
    other = Dataset(data.inputs.clone(), data.targets.clone(), data.ids)
    other.inputs[7] = float("inf")
    other.targets[7] = float("nan")
    kept = torch.ones(len(data.ids), dtype=torch.bool)
    kept[7] = False
    run = TrainingRun(Randomness(1), kept)
    recipe = RECIPES["plain"]
    first, second = (packed(small_cnn, "logistic", recipe, dataset, [run])[0] for dataset in (data, other))
    assert torch.equal(first, second)


def test_a_model_without_any_row_stays_as_it_began() -> None:
    data = images()
    nothing = torch.zeros(len(data.ids), dtype=torch.bool)
    runs = [TrainingRun(Randomness(1)), TrainingRun(Randomness(1), nothing)]
    for recipe in RECIPES.values():
        trained = packed(small_cnn, "logistic", recipe, data, runs)
        initial = parameters_of(Randomness(1).build(small_cnn))
        assert torch.equal(trained[1], initial)
        assert not torch.equal(trained[0], initial)


def test_divergence_is_one_models_own() -> None:
    """A row of huge values breaks the models that keep it, by name, and no other."""
    data = blob_data()
    data.inputs[4] = 1e30
    without = torch.ones(len(data.ids), dtype=torch.bool)
    without[4] = False
    fewer = without.clone()
    fewer[10:15] = False
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.05, momentum=0.5)

    def linear() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))

    runs = [
        TrainingRun(Randomness(0), without, "first"),
        TrainingRun(Randomness(8), None, "retraining abc, without 0 samples"),
        TrainingRun(Randomness(2), fewer),
    ]
    models = [run.randomness.build(linear) for run in runs]
    errors = train_models(models, get_loss("squared"), recipe, data, runs, kind=StackedPack)
    assert errors[0] is None
    assert errors[2] is None
    assert isinstance(errors[1], NonFiniteError)
    message = str(errors[1])
    assert "retraining abc, without 0 samples, seed 8, epoch 1" in message
    assert all(torch.isfinite(p).all() for model in (models[0], models[2]) for p in model.parameters())
    for index in (0, 2):
        assert torch.equal(parameters_of(models[index]), packed(linear, "squared", recipe, data, [runs[index]])[0])
    results = Trainer(linear, get_loss("squared"), recipe, data).train_all(runs)
    assert isinstance(results[1], NonFiniteError)
    assert isinstance(results[0], nn.Module)
    with pytest.raises(NonFiniteError, match="seed 8, epoch 1"):
        Trainer(linear, get_loss("squared"), recipe, data).train(runs[1])


def test_observers_see_a_packed_original_as_they_see_a_solo_one() -> None:
    problem = Digits(train_size=70, epochs=3)
    data, loss = problem.train_data(), get_loss(problem.loss)
    seen = []
    for way in ("stacked", "solo"):
        model = Randomness(3).build(problem.model)
        tracking, checkpoints = TrackingImportance(), Checkpoints([0, 1, 3], data, problem.recipe)
        if way == "stacked":
            runs = [TrainingRun(Randomness(3))]
            assert train_models([model], loss, problem.recipe, data, runs, kind=StackedPack, observers=(tracking, checkpoints)) == [None]
        else:
            train(model, loss, problem.recipe, data, Randomness(3), observers=(tracking, checkpoints))
        assert tracking.alpha is not None
        seen.append((tracking.alpha, checkpoints.saved, model))
    (alpha, saved, model), (solo_alpha, solo_saved, _) = seen
    torch.testing.assert_close(alpha, solo_alpha, rtol=1e-4, atol=1e-6)
    assert [c.epoch for c in saved] == [c.epoch for c in solo_saved] == [0, 1, 3]
    assert [c.rate for c in saved] == [c.rate for c in solo_saved]
    for ours, theirs in zip(saved, solo_saved, strict=True):
        torch.testing.assert_close(ours.outputs, theirs.outputs, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, saved[-1].state[name]) for name, value in model.state_dict().items())
    assert torch.equal(predict(model, data.inputs), saved[-1].outputs)
    # Nothing removed, among others: the original itself.
    runs = [*some_runs(data, 3, problem.recipe.batch_size), TrainingRun(Randomness(3), torch.ones(70, dtype=torch.bool))]
    assert torch.equal(packed(problem.model, "logistic", problem.recipe, data, runs)[3], parameters_of(model))


class Drops(nn.Module):
    """Draws random numbers without a layer that would show it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(nn.functional.dropout(inputs, 0.5, self.training))
        return result


class Branches(Drops):
    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs if inputs.sum() > 0 else -inputs)
        return result


class Mixes(Drops):
    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs - inputs.mean(dim=0))
        return result


class Largest(Drops):
    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs - inputs.amax(dim=0))
        return result


class Twice(Drops):
    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs) + self.linear(inputs * 2)
        return result


class OwnParameter(Drops):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs) * self.scale
        return result


class Fixed(Drops):
    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs.view(8, 5))
        return result


class Alone(Drops):
    trains_alone = True

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs)
        return result


UNKNOWN: dict[str, tuple[Factory, str]] = {
    "a layer called twice": (Twice, "more than once"),
    "a parameter of its own": (OwnParameter, "no stacked counterpart"),
    "a layer that is not known": (lambda: nn.Sequential(nn.Linear(5, 3), nn.PReLU(), nn.Linear(3, 1)), "no stacked counterpart"),
    "grouped": (
        lambda: nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 5, 1, groups=5), nn.Flatten(), nn.Linear(5, 1)),
        "no stacked counterpart",
    ),
}
REFUSED: dict[str, tuple[Factory, str]] = {
    "statistics of a mapped layer": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.PReLU(), nn.Linear(3, 1)),
        "mixes the samples",
    ),
    "dropout beside a mapped layer": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.PReLU(), nn.Dropout(0.2), nn.Linear(3, 1)),
        "random numbers",
    ),
    "functional dropout": (Drops, "random numbers"),
    "control flow": (Branches, "cannot trace"),
    "means over the batch": (Mixes, "change each other's numbers"),
    "largest values of the batch": (Largest, "change each other's numbers"),
    "a fixed number of rows": (Fixed, "cannot trace|fails on the rows"),
    "the model's own word": (Alone, "trains_alone"),
}


@pytest.mark.parametrize(("factory", "reason"), UNKNOWN.values(), ids=list(UNKNOWN))
def test_what_there_is_no_stacked_layer_for(factory: Factory, reason: str) -> None:
    """(It is mapped, see test_mapped_packs.py.)"""
    found = why_not_packed(factory, get_loss("logistic"), RECIPES["plain"], blob_data())
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(("factory", "reason"), REFUSED.values(), ids=list(REFUSED))
@pytest.mark.parametrize("batch_size", [8, 24, 32])
def test_what_cannot_share_its_steps_trains_alone(factory: Factory, reason: str, batch_size: int) -> None:
    data, recipe = blob_data(), replace(RECIPES["plain"], batch_size=batch_size)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for kind in (StackedPack, MappedPack):
        for most in (None, 2**30):
            assert why_not_packed(factory, get_loss("logistic"), recipe, data, kind, most) is not None
    assert torch.equal(before, torch.get_rng_state())
    if factory is Fixed:
        return
    trainer = Trainer(factory, get_loss("logistic"), recipe, data)
    assert trainer.pack_kind == "solo"
    assert trainer.pack_size() == 1
    assert trainer.solo_reason is not None
    assert torch.tensor([part in trainer.solo_reason for part in reason.split("|")]).any()
    runs = some_runs(data, 3, recipe.batch_size)
    expected = solo(factory, "logistic", recipe, data, runs)
    for model, one in zip(trainer.train_all(runs), expected, strict=True):
        assert isinstance(model, nn.Module)
        assert torch.equal(parameters_of(model), one)


def test_a_small_network_shares_and_a_large_one_does_not() -> None:
    """By the arithmetic of a step, and by nothing that is timed."""
    problem = Digits(train_size=70)
    trainer = Trainer(problem.model, get_loss(problem.loss), problem.recipe, problem.train_data())
    assert trainer.pack_kind == "stacked"
    assert trainer.solo_reason is None
    assert trainer.pack_size(3) == 16
    assert 1 <= trainer.pack_size() <= 64
    assert trainer.pack_size(3) == trainer.pack_size()
    assert trainer.seconds_per_model() > 0

    def wide() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 256), nn.ReLU(), nn.Linear(256, 1))

    large = Trainer(wide, get_loss(problem.loss), problem.recipe, problem.train_data())
    assert large.pack_kind == "solo"
    assert large.solo_reason is not None
    assert "multiply-adds" in large.solo_reason


def test_almost_equal_inputs_of_a_max_pool_are_no_reason_to_train_alone() -> None:
    """Which one is the larger follows from rounding, and so does the gradient of a whole batch; in float64 nothing differs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(64, 1, 8, 8, generator=generator)
    data = Dataset(inputs, (torch.rand(64, generator=generator) > 0.5).float(), torch.arange(64))
    # Shifts of one image by less than float32 resolves in the sums of a convolution.
    near = inputs.repeat_interleave(2, dim=2)[:, :, :8] + 1e-7 * torch.rand(64, 1, 8, 8, generator=generator)
    for rows in (inputs, near):
        recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.05)
        trainer = Trainer(SmallCNN, get_loss("logistic"), recipe, data._replace(inputs=rows))
        assert (trainer.pack_kind, trainer.solo_reason) == ("stacked", None)
