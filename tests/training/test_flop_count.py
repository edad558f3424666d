"""What a network's passes are counted to cost, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from genrep_dist.core.losses import get_loss
from genrep_dist.problems.datasets.digits import Digits
from genrep_dist.problems.datasets.image_models import VisionCNN
from genrep_dist.problems.datasets.text_models import TextCNN
from genrep_dist.training.flop_count import backward_bytes, forward_bytes, forward_flop, step_bytes
from genrep_dist.training.packs.mapped import MAPPED_SLOTS
from genrep_dist.training.trainer import choose_pack_kind, max_models_per_step
from tests.training.reference import RECIPES
from tests.training.test_mapped_packs import Attention
from tests.training.test_stacked_packs import OwnParameter, blob_data, float_text, multilayer


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.linear = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(self.cell(inputs)[0][:, -1])
        return result


class Graph(nn.Module):
    """A product with a matrix that torch keeps sparse, and has no count of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.neighbours = torch.eye(5).to_sparse()

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = torch.sparse.mm(self.neighbours, self.linear(inputs).T).T[:, :1]
        return result


def norms() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


def test_operations_of_a_forward_pass() -> None:
    vision = 2 * (784 * 9 * 32 + 196 * 288 * 64 + 36 * 576 * 128 + 1152)
    assert forward_flop(VisionCNN(), torch.zeros(2, 1, 28, 28)) == vision
    text = 2 * (9 * (12_000 + 25_000 + 100_000) + 200)
    assert forward_flop(TextCNN(), torch.ones(2, 9, dtype=torch.int64)) == text
    assert forward_flop(norms().eval(), torch.zeros(2, 5)) == 2 * (40 + 8)
    assert forward_flop(Lstm().eval(), torch.zeros(2, 6, 3)) == 2 * (6 * 16 * (3 + 4) + 4)
    layer = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), nn.Flatten(), nn.Linear(40, 1)).eval()
    before = torch.get_rng_state()
    found = forward_flop(layer, torch.zeros(2, 5, 8))
    assert torch.equal(before, torch.get_rng_state())
    assert found == 2 * (5 * (3 * 64 + 64 + 2 * 128) + 2 * 5 * 5 * 8 + 40)
    assert not any(module.training for module in layer.modules())


def test_memory_of_a_step() -> None:
    """What the way back needs of each layer, as much again for its gradients, and the windows of convolutions."""
    # The inputs; the sum before tanh is not kept, tanh's result is.
    assert step_bytes(multilayer(), torch.zeros(7, 5)) == 2 * 4 * 7 * (5 + 8)
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten())
    assert step_bytes(convolution, torch.zeros(3, 2, 6, 6)) == 2 * 4 * 3 * (2 * 36 + 16 * 18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_of_a_row_without_gradients(dtype: torch.dtype) -> None:
    """The input and the result of the widest operation; what does not grow with the rows is left out."""
    size = torch.finfo(dtype).bits // 8
    assert forward_bytes(multilayer().to(dtype), torch.zeros(2, 5, dtype=dtype)) == size * (8 + 8)
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()).to(dtype)
    # Twice the result, and once more the input: a library rearranges both. The sums over the rows are of batches.
    assert forward_bytes(convolution, torch.zeros(2, 2, 6, 6, dtype=dtype)) == size * (2 * 64 + 72)
    assert forward_bytes(nn.Sequential(nn.Embedding(1000, 4), nn.Flatten()), torch.zeros(2, 3, dtype=torch.int64)) == 4 * 12


def test_a_parameter_that_is_computed_in_the_forward_pass_is_not_counted_for_each_row() -> None:
    model = weight_norm(nn.Linear(1000, 500)).eval()
    assert forward_bytes(model, torch.zeros(2, 1000)) == 4 * 500
    assert backward_bytes(model, torch.zeros(2, 1000)) <= 2 * 4 * 1000


def test_what_cannot_be_counted_is_no_error() -> None:
    for model in (Graph(), VisionCNN()):
        assert forward_flop(model, torch.zeros(2, 5)) >= 0
        assert step_bytes(model, torch.zeros(2, 5)) >= 0
        assert forward_bytes(model, torch.zeros(2, 5)) >= 0
        assert backward_bytes(model, torch.zeros(2, 5)) >= 0


def noise() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.AlphaDropout(0.2), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("factory", "most"), [(multilayer, 64), (OwnParameter, MAPPED_SLOTS), (norms, 64), (noise, 1), (lambda: nn.Linear(5, 1).double(), 64)]
)
def test_how_many_models_share_a_step_at_most(factory: Callable[[], nn.Module], most: int) -> None:
    data = blob_data(next(factory().parameters()).dtype)
    kind, reason = choose_pack_kind(factory, get_loss("logistic"), RECIPES["plain"], data)
    assert (kind == "solo") == (reason is not None)
    assert max_models_per_step(kind, 4 * 100) == most


def test_large_models_share_with_few() -> None:
    assert max_models_per_step("stacked", 2**22) == 4
    assert max_models_per_step("stacked", 2**30) == 1
    for factory, data in ((lambda: Attention(30_000), float_text()), (VisionCNN, Digits().train_data())):
        assert choose_pack_kind(factory, get_loss("logistic"), RECIPES["momentum"], data)[0] == "solo"
