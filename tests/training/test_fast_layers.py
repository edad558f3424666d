"""Fast layers of one model: equal to the plain loop, and each can be switched off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.fast_layers import MIN_SPARSE_NUMBERS, fast_layers, sparse_embeddings
from genrep_dist.training.fast_paths import PLAIN, FastPaths
from genrep_dist.training.loop import TrainingRun, train
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import Trainer
from tests.training.reference import RECIPES, WORDS, parameters_of, plainly_trained, sentences, small_text, trained
from tests.training.test_mapped_packs import grouped
from tests.training.test_stacked_packs import float_text, images, small_cnn, text


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_text_is_trained_as_with_dense_gradients(recipe: Recipe) -> None:
    data = sentences()
    assert WORDS * 48 >= MIN_SPARSE_NUMBERS
    removed = {11, 14, 41}
    expected = parameters_of(plainly_trained(small_text, "logistic", recipe, data, Randomness(1), removed))
    found = trained(small_text, "logistic", recipe, data, 1, removed)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_sparse_gradients_hold_the_rows_of_a_batch_and_end_with_the_block() -> None:
    model = small_text()
    embedding = model.get_submodule("embedding")
    assert isinstance(embedding, nn.Embedding)
    with sparse_embeddings(model):
        gradient = torch.autograd.grad(model(sentences().inputs).sum(), embedding.weight)[0]
        assert gradient.is_sparse
        assert gradient._nnz() <= sentences().inputs.numel()
    assert not embedding.sparse
    with pytest.raises(RuntimeError, match="out of the block"), sparse_embeddings(model):
        raise RuntimeError("out of the block")
    assert not embedding.sparse
    for recipe, fast_paths, expected in (
        (RECIPES["plain"], FastPaths(), True),
        (RECIPES["momentum"], FastPaths(), False),
        (RECIPES["plain"], replace(FastPaths(), sparse_embeddings=False), False),
    ):
        with fast_layers(model, make_optimizer(recipe), fast_paths):
            assert embedding.sparse is expected


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_table_that_asks_for_sparse_gradients_itself_takes_the_same_steps(recipe: Recipe) -> None:
    def sparse_text() -> nn.Module:
        model = small_text()
        embedding = model.get_submodule("embedding")
        assert isinstance(embedding, nn.Embedding)
        embedding.sparse = True
        return model

    data = sentences()
    expected = parameters_of(plainly_trained(small_text, "logistic", recipe, data, Randomness(1), {11}))
    torch.testing.assert_close(trained(sparse_text, "logistic", recipe, data, 1, {11}), expected, rtol=1e-10, atol=1e-12)


def test_text_in_float32_is_the_plain_loop_to_rounding() -> None:
    def text() -> nn.Module:
        return TextCNN(vocabulary_size=WORDS, channels=(6, 5, 7))

    data = sentences()
    data = Dataset(data.inputs, data.targets.float(), data.ids)
    for recipe in RECIPES.values():
        expected = parameters_of(plainly_trained(text, "logistic", recipe, data, Randomness(1), {11, 14}))
        torch.testing.assert_close(trained(text, "logistic", recipe, data, 1, {11, 14}), expected, rtol=1e-3, atol=1e-5)


def test_a_table_that_two_layers_share_is_trained_whole() -> None:
    """Tied weights: a dense gradient joins the sparse one."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(WORDS, 24)

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = (self.words(tokens).mean(dim=1) @ self.words.weight.T)[:, :1]
            return result

    data = sentences()
    recipe = RECIPES["plain"]

    def tied() -> nn.Module:
        return Tied().double()

    expected = parameters_of(plainly_trained(tied, "logistic", recipe, data, Randomness(2)))
    torch.testing.assert_close(trained(tied, "logistic", recipe, data, 2, set()), expected, rtol=1e-11, atol=1e-12)


def one_logit() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def long_text() -> Dataset:
    """Sentences that are long enough for the sparse backward pass of a sequence convolution."""
    data = float_text()
    return Dataset(data.inputs.repeat(1, 3), data.targets, data.ids)


@pytest.mark.parametrize("name", [field.name for field in fields(FastPaths)])
def test_a_switch_turns_off_one_fast_path_and_results_agree(name: str) -> None:
    """Text alone in its loop for the layers; small networks for the packs."""
    recipe = replace(RECIPES["plain"], learning_rate=0.05)
    cases: dict[str, tuple[Callable[[], nn.Module], Dataset]] = {
        "stacked_packs": (small_cnn, images()),
        "shared_batches": (one_logit, images()),
        "mapped_packs": (grouped, images()),
        "sparse_embeddings": (text, long_text()),
        "sequence_convolutions": (text, long_text()),
    }
    factory, data = cases[name]
    stacked = name in ("stacked_packs", "shared_batches")
    layers_only = replace(FastPaths(), stacked_packs=stacked, mapped_packs=name == "mapped_packs")
    found = []
    for fast_paths in (layers_only, replace(layers_only, **{name: False}), PLAIN):
        trainer = Trainer(factory, get_loss("logistic"), recipe, data, fast_paths)
        assert (trainer.pack_kind != "solo") == (fast_paths.stacked_packs or fast_paths.mapped_packs)
        assert trainer.shares_batches == (fast_paths is layers_only and stacked)
        found.append(parameters_of(trainer.train(TrainingRun(Randomness(3)))))
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[0], found[2], rtol=1e-3, atol=1e-5)
    plain = train(Randomness(3).build(factory), get_loss("logistic"), recipe, data, Randomness(3), fast_paths=PLAIN)
    assert torch.equal(found[2], parameters_of(plain))
