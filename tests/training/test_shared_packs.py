"""Stacked models that read a batch once: the same bits in any company, and those of a stacked pack where no layer is narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.config import load_experiment
from genrep_dist.config.keys import Keys
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.loop import TrainingRun, train_models
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.compatibility import has_narrow_products
from genrep_dist.training.packs.shared import SharedPack, is_narrow, sharing_layers
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.sharing_trial import why_not_shared
from genrep_dist.training.trainer import Trainer
from tests.training.reference import LENGTH, RECIPES, parameters_of, plainly_trained
from tests.training.test_stacked_packs import CASES, Factory, float_text, images, small_cnn, some_runs


def ten_logits() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def one_logit() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))


def narrow_hidden() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 1))


def wide_hidden() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


NARROW: dict[str, tuple[Factory, str, Callable[[torch.dtype], Dataset]]] = {
    "ten logits": (ten_logits, "softmax", lambda dtype: images(num_classes=10, dtype=dtype)),
    "one logit": (one_logit, "logistic", lambda dtype: images(dtype=dtype)),
    "narrow hidden layer": (narrow_hidden, "squared", lambda dtype: images(dtype=dtype)),
}


def words() -> nn.Module:
    return nn.Sequential(nn.Embedding(3000, 4, padding_idx=0), nn.Flatten(), nn.Linear(4 * LENGTH, 1))


SHARING = {name: case for name, case in CASES.items() if name != "text"} | {"words": (words, "logistic", float_text)}
EVERY = SHARING | NARROW


def trained(kind: type[Pack], factory: Factory, loss: str, recipe: Recipe, data: Dataset, runs: Sequence[TrainingRun]) -> list[Tensor]:
    models = [run.randomness.build(factory) for run in runs]
    assert train_models(models, get_loss(loss), recipe, data, runs, kind=kind) == [None] * len(runs)
    return [parameters_of(model) for model in models]


@pytest.mark.parametrize("case", EVERY.values(), ids=list(EVERY))
def test_the_plain_loop_in_float64(case: tuple[Factory, str, Callable[[torch.dtype], Dataset]]) -> None:
    factory, loss, make = case
    data, recipe = make(torch.float64), RECIPES["all"]

    def double() -> nn.Module:
        return factory().double()

    runs = some_runs(data, 4, recipe.batch_size)
    for run, found in zip(runs, trained(SharedPack, double, loss, recipe, data, runs), strict=True):
        assert run.kept is not None
        plain = plainly_trained(double, loss, recipe, data, run.randomness, set(data.ids[~run.kept].tolist()))
        torch.testing.assert_close(found, parameters_of(plain), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", EVERY.values(), ids=list(EVERY))
def test_a_model_is_the_same_whoever_reads_the_batch_with_it(case: tuple[Factory, str, Callable[[torch.dtype], Dataset]]) -> None:
    """In packs of 1, 8, 16, 17 and 20, in any company and slot; where no layer is narrow, also in a stacked pack."""
    factory, loss, make = case
    data, recipe = make(torch.float32), replace(RECIPES["all"], epochs=2)
    runs = some_runs(data, 20, recipe.batch_size)
    together = trained(SharedPack, factory, loss, recipe, data, runs)
    for start, stop in ((0, 1), (3, 4), (0, 8), (4, 20), (1, 18)):
        found = trained(SharedPack, factory, loss, recipe, data, runs[start:stop])
        assert all(torch.equal(a, b) for a, b in zip(found, together[start:stop], strict=True))
    backwards = trained(SharedPack, factory, loss, recipe, data, runs[::-1])
    assert all(torch.equal(a, b) for a, b in zip(backwards, together[::-1], strict=True))
    model = factory()
    narrow = any(is_narrow(model.get_submodule(path)) for path in sharing_layers(model) or [])
    for one, stacked in zip(together, trained(StackedPack, factory, loss, recipe, data, runs), strict=True):
        if narrow:
            torch.testing.assert_close(one, stacked, rtol=2e-3, atol=2e-4)
        else:
            assert torch.equal(one, stacked)


@pytest.mark.parametrize("case", [CASES["small cnn"], NARROW["ten logits"]], ids=["small cnn", "ten logits"])
@pytest.mark.parametrize("recipe", [replace(RECIPES["plain"], optimizer="adam"), replace(RECIPES["plain"], clip_norm=0.1)])
def test_a_trainer_mixes_runs_that_share_batches_with_others(
    case: tuple[Factory, str, Callable[[torch.dtype], Dataset]], recipe: Recipe
) -> None:
    """Two seeds, fresh random numbers and new batches: each model is what it is alone. The original is one of them."""
    factory, loss, make = case
    data = make(torch.float32)
    trainer = Trainer(factory, get_loss(loss), recipe, data)
    assert trainer.shares_batches
    same, fresh = some_runs(data, 6, recipe.batch_size), some_runs(data, 2, recipe.batch_size, "fresh")
    kept = torch.arange(len(data.ids)) % 3 != 0
    others = [TrainingRun(Randomness(8), kept), TrainingRun(Randomness(5), kept, rebatch=True), TrainingRun(Randomness(5))]
    runs = [same[0], others[0], *fresh[:1], *same[1:], *fresh[1:], *others[1:]]
    rebatched = len(runs) - 2
    together = [one for one in runs if not one.rebatch]
    models = trainer.train_all(together)
    assert all(isinstance(model, nn.Module) for model in models)
    for run, model in zip(together, models, strict=True):
        assert isinstance(model, nn.Module)
        assert torch.equal(parameters_of(model), parameters_of(trainer.train(run)))
    original = trainer.train(TrainingRun(Randomness(5)), [TrackingImportance()])
    assert isinstance(models[-1], nn.Module)
    assert torch.equal(parameters_of(original), parameters_of(models[-1]))
    stacked = Trainer(factory, get_loss(loss), recipe, data, FastPaths(shared_batches=False))
    assert not stacked.shares_batches
    for run in (runs[rebatched], fresh[0]):
        assert torch.equal(parameters_of(trainer.train(run)), parameters_of(stacked.train(run)))


def shifted(row: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
    return torch.roll(row, epoch + int(torch.randint(0, 3, (1,), generator=generator)), dims=-1)


def test_weights_labels_and_augmentation() -> None:
    """Runs with other weights or labels share batches, too."""
    data, recipe, loss = images(num_classes=10), replace(RECIPES["plain"], augment=shifted), get_loss("softmax")
    kept, generator = torch.arange(len(data.ids)) % 3 != 0, torch.Generator().manual_seed(0)
    weights = torch.rand(len(data.ids), dtype=torch.float64, generator=generator) + 0.1
    labels = torch.randint(0, 10, (len(data.ids),), generator=generator)
    same = Randomness(5)
    runs = [TrainingRun(same, kept), TrainingRun(same, kept, weights=weights), TrainingRun(same, targets=labels), TrainingRun(same)]
    for factory in (ten_logits, wide_hidden):
        trainer, stacked = (Trainer(factory, loss, recipe, data, FastPaths(shared_batches=share)) for share in (True, False))
        assert trainer.shares_batches
        for run, model, expected in zip(runs, trainer.train_all(runs), stacked.train_all(runs), strict=True):
            assert isinstance(model, nn.Module)
            assert isinstance(expected, nn.Module)
            assert torch.equal(parameters_of(model), parameters_of(trainer.train(run)))
            torch.testing.assert_close(parameters_of(model), parameters_of(expected), rtol=1e-5, atol=1e-6)


def test_a_removed_row_cannot_matter_even_where_it_is_not_finite() -> None:
    """A model that meets NaN is repeated in a pack that does not read the row; the others stay as they are."""
    data = images(num_classes=10)
    other = Dataset(data.inputs.clone(), data.targets.clone(), data.ids)
    other.inputs[37], other.inputs[39] = float("inf"), 3e38
    runs = [run for run in some_runs(data, 9, 8) if run.kept is not None]
    for run in runs:
        assert run.kept is not None
        run.kept[[37, 39]] = False
    recipe = RECIPES["plain"]
    for factory in (ten_logits, wide_hidden):
        trainer = Trainer(factory, get_loss("softmax"), recipe, other)
        assert trainer.shares_batches
        stacked = trained(StackedPack, factory, "softmax", recipe, data, runs)
        for model, expected in zip(trainer.train_all(runs), stacked, strict=True):
            assert isinstance(model, nn.Module)
            assert torch.equal(parameters_of(model), expected)
        assert isinstance(trainer.train_all([TrainingRun(Randomness(5)), runs[0]])[0], NonFiniteError)


class Skips(nn.Module):
    """Reads the batch behind its first layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        result: Tensor = self.last(flat + self.first(flat))
        return result


class Branches(Skips):
    """Two layers see the batch, one of them what is computed of it."""

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(self.first((inputs * 2).flatten(1)).view(-1, 64))
        return result


def test_which_models_share() -> None:
    data, recipe, loss = images(), RECIPES["plain"], get_loss("logistic")
    assert sharing_layers(Branches()) == ["first"]
    assert sharing_layers(nn.Linear(64, 1)) == [""]
    assert why_not_shared(small_cnn, loss, recipe, data) is None
    reason = why_not_shared(Skips, loss, recipe, data)
    assert reason is not None
    assert "take numbers from the batch" in reason
    trainer = Trainer(Skips, loss, recipe, data)
    assert (trainer.pack_kind, trainer.shares_batches) == ("stacked", False)
    assert Trainer(one_logit, loss, recipe, data).pack_size(2) == 64
    assert not any(map(is_narrow, (nn.Linear(63, 1), nn.Linear(64, 16), nn.Conv2d(64, 3, 3))))


def test_narrow_products_have_a_key_of_their_own() -> None:
    """And no other training has another key than before."""
    recipe = RECIPES["plain"]
    assert all(has_narrow_products(factory, recipe) for factory in (ten_logits, one_logit, narrow_hidden))
    assert not any(has_narrow_products(factory, recipe) for factory in (small_cnn, wide_hidden, Skips, lambda: nn.Linear(5, 1)))
    assert not has_narrow_products(lambda: nn.Sequential(nn.Linear(64, 2), nn.AlphaDropout(0.5)), recipe)
    keys = Keys(load_experiment("smoke"), "data", "problem", {"epochs": 4}, {}, 10)
    assert replace(keys, products="narrow").training != keys.training
    assert replace(keys, products="").training == keys.training


@pytest.mark.parametrize("num_outputs", range(1, 16))
def test_all_slots_of_a_narrow_product_are_alike(num_outputs: int) -> None:
    """In packs that fill their products, and in others: one run in every slot."""
    data, loss = images(num_classes=num_outputs) if num_outputs > 2 else images(), "softmax" if num_outputs > 2 else "squared"
    if num_outputs == 2:
        data = Dataset(data.inputs, data.inputs[:, 0, :2, 0], data.ids)
    (*_, run), recipe = some_runs(data, 2, 8), replace(RECIPES["plain"], epochs=1)

    def factory() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))

    (alone,) = trained(SharedPack, factory, loss, recipe, data, [run])
    for slots in (8, 33, 64):
        assert all(torch.equal(alone, one) for one in trained(SharedPack, factory, loss, recipe, data, [run] * slots))
