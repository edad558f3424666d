"""Losses against torch.autograd and against higher precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.core.losses import LOSSES, LogisticLoss, Loss, SoftmaxLoss, SquaredLoss, get_loss
from genrep_dist.errors import ProblemError
from tests.core.models import rows, seeded


def hard_targets(name: str, num_outputs: int, count: int) -> Tensor:
    if name == "softmax":
        return torch.randint(num_outputs, (count,), generator=seeded(5))
    if name == "logistic":
        return torch.randint(2, (count,), generator=seeded(5))
    return rows(count, num_outputs, seed=5).squeeze(1)


def plain_value(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """One sample's loss from torch's own functions: outputs (C,), targets a scalar or (C,)."""
    functional = torch.nn.functional
    if name == "squared":
        return 0.5 * ((outputs - targets) ** 2).sum()
    if name == "logistic":
        return functional.binary_cross_entropy_with_logits(outputs, targets.reshape(1).to(outputs.dtype))
    return functional.cross_entropy(outputs.unsqueeze(0), targets.unsqueeze(0))


CASES = [("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 2), ("softmax", 5)]


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("name", "num_outputs"), CASES)
def test_value_and_derivatives_agree_with_autograd(name: str, num_outputs: int, soft: bool) -> None:
    loss = LOSSES[name]
    count = 7
    outputs = 3 * rows(count, num_outputs)
    targets = loss.soft_targets(rows(count, num_outputs, seed=9)) if soft else hard_targets(name, num_outputs, count)
    value, first, second = loss.value(outputs, targets), loss.derivative(outputs, targets), loss.second_derivative(outputs, targets)
    assert value.shape == (count,)
    assert first.shape == (count, num_outputs)
    assert second.shape == (count, num_outputs, num_outputs)
    for i in range(count):
        f = outputs[i].clone().requires_grad_()
        expected = plain_value(name, f, targets[i])
        (gradient,) = torch.autograd.grad(expected, f, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(gradient[c], f, retain_graph=True)[0] for c in range(num_outputs)])
        torch.testing.assert_close(value[i], expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(first[i], gradient.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(second[i], hessian, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(second[i], second[i].T, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "num_outputs"), CASES)
def test_autograd_through_the_value_gives_the_derivative(name: str, num_outputs: int) -> None:
    loss = LOSSES[name]
    outputs = (3 * rows(6, num_outputs)).requires_grad_()
    targets = hard_targets(name, num_outputs, 6)
    (gradient,) = torch.autograd.grad(loss.value(outputs, targets).sum(), outputs)
    torch.testing.assert_close(gradient, loss.derivative(outputs.detach(), targets), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "num_outputs"), CASES)
def test_a_models_own_predictions_are_where_the_derivative_vanishes(name: str, num_outputs: int) -> None:
    loss = LOSSES[name]
    outputs = 2 * rows(8, num_outputs)
    derivative = loss.derivative(outputs, loss.soft_targets(outputs))
    torch.testing.assert_close(derivative, torch.zeros_like(derivative), rtol=0, atol=1e-14)


@given(st.floats(-30, 30), st.integers(0, 1))
def test_logistic_in_float32_keeps_its_precision_where_predictions_are_confident(f: float, label: int) -> None:
    single, double = torch.tensor([[f]], dtype=torch.float32), torch.tensor([[f]], dtype=torch.float32).double()
    y = torch.tensor([label])
    sign = 1 - 2 * label
    exact = sign * torch.exp(torch.nn.functional.logsigmoid(sign * double))
    loss = LogisticLoss()
    torch.testing.assert_close(loss.derivative(single, y).double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.value(single, y).double(), loss.value(double, y), rtol=1e-5, atol=0)


def test_softmax_in_float32_keeps_its_precision_where_predictions_are_confident() -> None:
    outputs = torch.tensor([[25.0, 0.0, 1.0], [-3.0, 20.0, 0.5]])
    targets = torch.tensor([0, 1])
    loss = SoftmaxLoss()
    # In double precision the plain formula still has nine digits here.
    p = torch.softmax(outputs.double(), dim=1)
    plain = p - torch.nn.functional.one_hot(targets, 3)
    torch.testing.assert_close(loss.derivative(outputs, targets).double(), plain, rtol=1e-4, atol=0)
    curvature = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    torch.testing.assert_close(loss.second_derivative(outputs, targets).double(), curvature, rtol=1e-4, atol=0)


@given(st.floats(-60, 60), st.floats(-60, 60))
def test_the_logistic_value_is_convex_and_has_no_jump(a: float, b: float) -> None:
    loss = LogisticLoss()
    points = torch.tensor([[a], [b], [(a + b) / 2]], dtype=torch.float64)
    left, right, middle = loss.value(points, torch.zeros(3))
    assert middle <= (left + right) / 2 + 1e-12


def test_the_logistic_value_is_exact_beyond_torchs_own_threshold() -> None:
    # torch's softplus is the identity beyond 20; log(1 + exp(25)) - 25 = exp(-25) to first order.
    value = LogisticLoss().value(torch.tensor([[25.0]], dtype=torch.float64), torch.tensor([0]))
    assert float(value - 25) == pytest.approx(float(torch.exp(torch.tensor(-25.0))), rel=1e-3)


def test_targets_that_do_not_fit_are_refused_instead_of_broadcast() -> None:
    with pytest.raises(ProblemError, match="targets do not fit"):
        SquaredLoss().value(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ProblemError, match="targets do not fit"):
        SquaredLoss().derivative(torch.zeros(4, 1), torch.zeros(5))
    with pytest.raises(ProblemError, match="targets do not fit"):
        SoftmaxLoss().derivative(torch.zeros(4, 3), torch.zeros(4, 2))
    with pytest.raises(ProblemError, match="one logit"):
        LogisticLoss().second_derivative(torch.zeros(4, 2), torch.zeros(4))
    with pytest.raises(ProblemError, match="one logit per class"):
        SoftmaxLoss().value(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))


def test_losses_are_found_by_name_and_a_users_own_passes() -> None:
    class Own(SquaredLoss):
        name = "own"

    own = Own()
    assert get_loss("softmax") is LOSSES["softmax"]
    assert get_loss(own) is own
    assert isinstance(own, Loss)
    with pytest.raises(ProblemError, match="unknown loss"):
        get_loss("hinge")
    with pytest.raises(ProblemError, match="not usable"):
        get_loss(3.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_outputs", [2, 3, 10])
def test_the_softmax_derivative_class_by_class(num_outputs: int) -> None:
    """Also where the label's probability is near one, in float32."""
    generator = torch.Generator().manual_seed(0)
    outputs = 8 * torch.randn(64, num_outputs, generator=generator)
    targets = torch.cat([outputs[:32].argmax(dim=1), torch.randint(0, num_outputs, (32,), generator=generator)])
    loss = SoftmaxLoss()
    found, exact = loss.derivative_by_class(outputs, targets), loss.derivative(outputs.double(), targets)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss.derivative(outputs, targets).double(), exact, rtol=1e-4, atol=0)
    soft = torch.softmax(outputs, dim=1)
    assert torch.equal(loss.derivative_by_class(outputs, soft), loss.derivative(outputs, soft))
