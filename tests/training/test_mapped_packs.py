"""Models of layers that are not known share their steps by mapping: as alone to rounding, and bit for bit in any company."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import TrainingRun, train
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.packs.mapped import MAPPED_SLOTS
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.training.reference import RECIPES, parameters_of, plainly_trained
from tests.training.test_stacked_packs import OwnParameter, Twice, blob_data, float_text, images, some_runs

Factory = Callable[[], nn.Module]


class Attention(nn.Module):
    """Tokens that look at each other; the embedding is read once more at the end."""

    def __init__(self, words: int = 2500) -> None:
        super().__init__()
        self.words = nn.Embedding(words, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        result: Tensor = (hidden.mean(dim=1) * self.scale) @ self.words.weight[:1].T
        return result


class FrozenBelow(OwnParameter):
    """What is not trained is each model's own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(5, 5).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.tanh(self.below(inputs)))


class TwoPlaces(OwnParameter):
    """A module that stands in two places, one of which is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = self.first

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.tanh(self.again(inputs)))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.PReLU(4), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 1)
    )


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(300_000, 8), nn.AdaptiveAvgPool2d((1, 8)), nn.Flatten(), nn.Linear(8, 1))


CASES: dict[str, tuple[Factory, Callable[[torch.dtype], Dataset]]] = {
    "a layer called twice": (Twice, blob_data),
    "a parameter of its own": (OwnParameter, blob_data),
    "frozen below": (FrozenBelow, blob_data),
    "a module in two places": (TwoPlaces, blob_data),
    "groups and slopes": (grouped, lambda dtype: images(dtype=dtype)),
    "attention": (Attention, float_text),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_each_model_is_what_it_is_alone_in_float64(case: tuple[Factory, Callable[[torch.dtype], Dataset]], recipe: Recipe) -> None:
    factory, make = case
    data = make(torch.float64)

    def double() -> nn.Module:
        return factory().double()

    trainer = Trainer(double, get_loss("logistic"), recipe, data)
    assert (trainer.pack_kind, trainer.solo_reason) == ("mapped", None)
    runs = some_runs(data, 5, recipe.batch_size)
    for run, found in zip(runs, trainer.train_all(runs), strict=True):
        assert isinstance(found, nn.Module)
        removed = set() if run.kept is None else set(data.ids[~run.kept].tolist())
        plain = plainly_trained(double, "logistic", recipe, data, run.randomness, removed)
        torch.testing.assert_close(parameters_of(found), parameters_of(plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_company_changes_no_bit(case: tuple[Factory, Callable[[torch.dtype], Dataset]]) -> None:
    """Alone, among five, and among more than a pack holds, in another order."""
    factory, make = case
    data, recipe = make(torch.float32), RECIPES["all"]
    trainer = Trainer(factory, get_loss("logistic"), recipe, data)
    assert trainer.pack_size() == MAPPED_SLOTS
    runs = some_runs(data, MAPPED_SLOTS + 3, recipe.batch_size, "fresh")
    first = [parameters_of(trainer.train(run)) for run in runs[:3]]
    for some in (runs[:5], runs[::-1]):
        found = dict(zip([run.description for run in some], trainer.train_all(some), strict=True))
        for run, one in zip(runs, first, strict=False):
            model = found[run.description]
            assert isinstance(model, nn.Module)
            assert torch.equal(parameters_of(model), one)


def test_observers_see_the_first_model() -> None:
    data, recipe, loss = blob_data(torch.float64), RECIPES["plain"], get_loss("logistic")

    def double() -> nn.Module:
        return Twice().double()

    mapped, alone = TrackingImportance(), TrackingImportance()
    Trainer(double, loss, recipe, data).train(TrainingRun(Randomness(3)), [mapped])
    train(Randomness(3).build(double), loss, recipe, data, Randomness(3), observers=[alone])
    assert mapped.alpha is not None
    assert alone.alpha is not None
    torch.testing.assert_close(mapped.alpha, alone.alpha, rtol=1e-9, atol=1e-12)


def test_divergence_is_one_models_own() -> None:
    data = blob_data()
    data.inputs[30] = 1e30
    without = torch.ones(len(data.ids), dtype=torch.bool)
    without[30] = False
    trainer = Trainer(OwnParameter, get_loss("squared"), RECIPES["momentum"], data)
    assert trainer.pack_kind == "mapped"
    runs = [TrainingRun(Randomness(0), without, "first"), TrainingRun(Randomness(8), None, "the second")]
    fine, error = trainer.train_all(runs)
    assert isinstance(fine, nn.Module)
    assert isinstance(error, NonFiniteError)
    assert "the second" in str(error)
    assert torch.equal(parameters_of(fine), parameters_of(trainer.train(runs[0])))


def test_what_a_model_does_better_alone() -> None:
    """A large table is moved row by row, and large products cost more than calls."""
    table = Trainer(lambda: Attention(10_000), get_loss("logistic"), RECIPES["plain"], float_text())
    assert table.pack_kind == "solo"
    assert "sparse gradients" in str(table.solo_reason)
    # With momentum every row moves anyway, but 32 such tables would fill the memory.
    table = Trainer(lambda: Attention(30_000), get_loss("logistic"), RECIPES["momentum"], float_text())
    assert table.pack_kind == "solo"
    assert "bytes" in str(table.solo_reason)
    # Two such tables fill it: there is nothing to share a step with, and the trial would hold several.
    table = Trainer(words, get_loss("logistic"), RECIPES["plain"], float_text())
    assert table.pack_kind == "solo"
    assert "two models would take 19,200,072 bytes" in str(table.solo_reason)
    # Torch maps no such layer.
    bag = Trainer(lambda: nn.Sequential(nn.EmbeddingBag(3000, 4), nn.Linear(4, 1)), get_loss("logistic"), RECIPES["momentum"], float_text())
    assert bag.pack_kind == "solo"
    assert "batching rule" in str(bag.solo_reason)

    def wide() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 48, 3), nn.PReLU(), nn.Conv2d(48, 48, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 48, 1))

    large = Trainer(wide, get_loss("logistic"), RECIPES["plain"], images())
    assert large.pack_kind == "solo"
    assert "multiply-adds" in str(large.solo_reason)


def test_seconds_count_the_slots_that_are_filled() -> None:
    """One model takes a whole pack."""
    trainer = Trainer(OwnParameter, get_loss("logistic"), RECIPES["plain"], blob_data())
    assert trainer.seconds_per_model(1) > 4 * trainer.seconds_per_model()
