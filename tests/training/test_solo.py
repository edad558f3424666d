"""The solo loop against a loop that a user would write, and embeddings whose steps cost what their tokens cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training import batches as batches_module
from genrep_dist.training.loop import all_finite, train
from genrep_dist.training.memory_format import sequences_channels_last
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.sgd import MIN_SPARSE_NUMBERS, row_wise_embeddings
from tests.toys import Blobs
from tests.training.reference import parameters_of, plainly_trained

RECIPES = {
    "plain": Recipe(epochs=3, batch_size=8, learning_rate=0.2),
    "cosine": Recipe(epochs=3, batch_size=8, learning_rate=0.2, schedule="cosine"),
    "momentum": Recipe(epochs=3, batch_size=8, learning_rate=0.05, momentum=0.9),
    "weight decay": Recipe(epochs=3, batch_size=8, learning_rate=0.2, weight_decay=0.1),
    "all": Recipe(epochs=3, batch_size=8, learning_rate=0.05, schedule="cosine", momentum=0.8, weight_decay=0.05),
}
LENGTH = 12
WORDS = 3000


def small_text() -> nn.Module:
    return TextCNN(vocabulary_size=WORDS, channels=(6, 5, 7)).double()


def sentences(num_rows: int = 30) -> Dataset:
    """Sentences of few of the words, some of them padded with zeros; some words come twice in a batch."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 60, (num_rows, LENGTH), generator=generator) * 41
    lengths = torch.randint(3, LENGTH + 1, (num_rows, 1), generator=generator)
    tokens[torch.arange(LENGTH) >= lengths] = 0
    return Dataset(tokens, (torch.rand(num_rows, generator=generator) > 0.5).double(), torch.arange(num_rows) * 3 + 11)


def trained(factory: Callable[[], nn.Module], loss: str, recipe: Recipe, data: Dataset, seed: int, removed: set[int]) -> Tensor:
    randomness = Randomness(seed)
    kept = torch.tensor([int(i) not in removed for i in data.ids])
    return parameters_of(train(randomness.build(factory), get_loss(loss), recipe, data, randomness, kept=kept))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_recipe_is_what_torch_makes_of_it(recipe: Recipe, num_classes: int) -> None:
    problem = Blobs(num_classes=num_classes, train_size=37)
    data = problem.train_data()
    data = Dataset(data.inputs.double(), data.targets, data.ids)
    order = Randomness(4).order(2, 37)
    # The whole of one batch goes, and some more: neither momentum nor weight decay may move anything in a step that is none.
    removed = {int(data.ids[i]) for i in [*order[8:16].tolist(), 0, 3, 20]}

    def model() -> nn.Module:
        return problem.model().double()

    expected = plainly_trained(model, problem.loss, recipe, data, Randomness(4), removed)
    torch.testing.assert_close(trained(model, problem.loss, recipe, data, 4, removed), parameters_of(expected), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_text_is_trained_as_with_dense_gradients(recipe: Recipe) -> None:
    data = sentences()
    assert WORDS * 48 >= MIN_SPARSE_NUMBERS
    removed = {11, 14, 41}
    expected = parameters_of(plainly_trained(small_text, "logistic", recipe, data, Randomness(1), removed))
    found = trained(small_text, "logistic", recipe, data, 1, removed)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_an_embedding_is_touched_row_by_row_and_left_as_it_was() -> None:
    model = small_text()
    embedding = model.get_submodule("embedding")
    assert isinstance(embedding, nn.Embedding)
    plain = Recipe(epochs=1, batch_size=8, learning_rate=0.1)
    with row_wise_embeddings(model, plain):
        gradient = torch.autograd.grad(model(sentences().inputs).sum(), embedding.weight)[0]
        assert gradient.is_sparse
        assert gradient._nnz() <= sentences().inputs.numel()
    assert not embedding.sparse
    with pytest.raises(RuntimeError, match="out of the block"), row_wise_embeddings(model, plain):
        raise RuntimeError("out of the block")
    assert not embedding.sparse
    with row_wise_embeddings(model, Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.5)):
        assert not embedding.sparse


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


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_sequences_are_convolved_as_before(padding: int, groups: int) -> None:
    """Inside and outside of the layout, outputs and gradients are equal, and the module is left as it was."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv1d(4, 6, 5, stride=2, padding=padding, dilation=2, groups=groups), nn.ReLU(), nn.Conv1d(6, 3, 2, bias=False)
    )
    for inputs in (torch.randn(7, 4, 30), torch.randn(7, 30, 4).transpose(1, 2)):
        inputs.requires_grad_()
        leaves = [inputs, *layers.parameters()]
        outside = layers(inputs)
        expected = torch.autograd.grad(outside.square().sum(), leaves)
        with sequences_channels_last(layers):
            inside = layers(inputs)
            assert inside.stride()[1] == 1
            found = torch.autograd.grad(inside.square().sum(), leaves)
            assert layers(inputs[0]).shape == outside[0].shape
        torch.testing.assert_close(inside, outside)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not any("_conv_forward" in vars(layer) for layer in layers)
    with pytest.raises(RuntimeError, match="out of the block"), sequences_channels_last(layers):
        raise RuntimeError("out of the block")
    assert not any("_conv_forward" in vars(layer) for layer in layers)


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


def test_parameters_that_take_no_part_are_left_alone() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = nn.Linear(5, 1), nn.Linear(5, 1), nn.Linear(5, 5)
            self.frozen.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            result: Tensor = self.used(self.frozen(inputs))
            return result

    data = Blobs().train_data()
    for recipe in RECIPES.values():
        expected = parameters_of(plainly_trained(Idle, "logistic", recipe, data, Randomness(0)))
        torch.testing.assert_close(trained(Idle, "logistic", recipe, data, 0, set()), expected, rtol=1e-5, atol=1e-6)


def test_how_rows_are_gathered_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Blobs(train_size=53).train_data()
    removed = set(data.ids[5:19].tolist())
    results = []
    for size in (1, 700, 2**23):
        monkeypatch.setattr(batches_module, "GATHER_BYTES", size)
        results.append(trained(Blobs().model, "logistic", RECIPES["plain"], data, 3, removed))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_finiteness_is_seen_wherever_it_ends() -> None:
    fine = [torch.ones(3), torch.full((2, 2), 1e38), torch.empty(0), torch.tensor([1e300], dtype=torch.float64), torch.ones(2) * 1j]
    assert all_finite(fine)
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite([*fine, torch.tensor([1.0, bad, 2.0])])
        assert not all_finite([*fine, torch.complex(torch.ones(1), torch.tensor([bad]))])
