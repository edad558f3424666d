"""Kernel blocks against loops, and the last-layer kernel against the NTK of the last layer's parameters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block
from genrep_dist.core.losses import LOSSES, SquaredLoss
from genrep_dist.errors import ProblemError
from tests.core.models import cnn, rows, seeded


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 5))
def test_ntk_block_agrees_with_loops(num_train: int, num_outputs: int, num_test: int, width: int) -> None:
    train, test = rows(num_train, num_outputs, width), rows(num_test, width, seed=2)
    block = ntk_block(train, test)
    assert block.shape == (num_train, num_outputs, num_test)
    for b in range(num_train):
        for c in range(num_outputs):
            for m in range(num_test):
                inner = sum(float(train[b, c, p]) * float(test[m, p]) for p in range(width))
                assert float(block[b, c, m]) == pytest.approx(inner, rel=1e-12, abs=1e-13)


def test_last_layer_block_agrees_with_loops() -> None:
    train, test = rows(4, 5), rows(3, 5, seed=2)
    index = torch.tensor([2, 0, 2])
    block = last_layer_block(train, test, index, 3)
    assert block.shape == (4, 3, 3)
    for b in range(4):
        for c in range(3):
            for m in range(3):
                inner = sum(float(train[b, k]) * float(test[m, k]) for k in range(5)) if c == index[m] else 0.0
                assert float(block[b, c, m]) == pytest.approx(inner, rel=1e-12, abs=0)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_last_layer_block_is_the_ntk_of_the_last_layers_parameters(num_outputs: int) -> None:
    model = cnn(num_outputs)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("8."))
    train, test = rows(6, 2, 6, 6), rows(4, 2, 6, 6, seed=2)
    index = torch.arange(4) % num_outputs
    expected = ntk_block(per_sample_gradients(model, train), per_sample_gradients(model, test, index))
    block = last_layer_block(last_layer_features(model, train), last_layer_features(model, test), index, num_outputs)
    torch.testing.assert_close(block, expected, rtol=1e-12, atol=1e-12)


def test_the_whole_kernel_is_the_last_layers_and_the_other_layers() -> None:
    model, inputs = cnn(1), rows(5, 2, 6, 6)
    index = torch.zeros(5, dtype=torch.int64)
    whole = ntk_block(per_sample_gradients(model, inputs), per_sample_gradients(model, inputs, index))
    last = last_layer_block(last_layer_features(model, inputs), last_layer_features(model, inputs), index, 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("8."))
    others = ntk_block(per_sample_gradients(model, inputs), per_sample_gradients(model, inputs, index))
    torch.testing.assert_close(whole, last + others, rtol=1e-12, atol=1e-12)


def test_an_infinite_inner_product_stays_out_of_the_other_outputs() -> None:
    block = last_layer_block(torch.tensor([[torch.inf]]), torch.tensor([[1.0]]), torch.tensor([1]), 3)
    assert block.flatten().tolist() == [0.0, torch.inf, 0.0]


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProblemError, match="do not fit each other"):
        ntk_block(rows(3, 2, 4), rows(3, 5))
    with pytest.raises(ProblemError, match="do not fit each other"):
        ntk_block(rows(3, 2, 4), rows(3, 4).float())
    with pytest.raises(ProblemError, match="do not fit each other"):
        last_layer_block(rows(3, 4), rows(2, 5), torch.zeros(2, dtype=torch.int64), 1)
    with pytest.raises(ProblemError, match="does not fit the test samples"):
        last_layer_block(rows(3, 4), rows(2, 4), torch.zeros(3, dtype=torch.int64), 1)
    with pytest.raises(ProblemError, match="does not exist"):
        last_layer_block(rows(3, 4), rows(2, 4), torch.tensor([0, 1]), 1)


@pytest.mark.parametrize(("name", "num_outputs"), [("squared", 1), ("logistic", 1), ("softmax", 4)])
def test_target_importance_is_the_negative_gradient_of_the_loss(name: str, num_outputs: int) -> None:
    loss = LOSSES[name]
    outputs = rows(6, num_outputs).requires_grad_()
    targets = torch.randint(max(2, num_outputs), (6,), generator=seeded(3))
    (gradient,) = torch.autograd.grad(loss.value(outputs, targets).sum(), outputs)
    alpha = target_importance(loss, outputs.detach(), targets)
    torch.testing.assert_close(alpha, -gradient, rtol=1e-12, atol=1e-13)


def test_target_importance_points_towards_the_label() -> None:
    alpha = target_importance(LOSSES["logistic"], torch.tensor([[0.3], [0.3]]), torch.tensor([1, 0]))
    assert alpha[0] > 0 > alpha[1]


def test_a_derivative_of_the_wrong_shape_is_refused() -> None:
    class Summed(SquaredLoss):
        name = "summed"

        def derivative(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return super().derivative(outputs, targets).sum(dim=1)

    with pytest.raises(ProblemError, match="loss summed"):
        target_importance(Summed(), rows(3, 1), rows(3))


def test_kernels_keep_the_features_dtype() -> None:
    assert ntk_block(rows(2, 1, 3, dtype=torch.float32), rows(2, 3, dtype=torch.float32)).dtype == torch.float32
    assert last_layer_block(rows(2, 3).float(), rows(1, 3).float(), torch.tensor([0]), 2).dtype == torch.float32
