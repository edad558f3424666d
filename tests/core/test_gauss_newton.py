"""Square roots and the influence kernel against explicit P x P inverses, and against leave-one-out retraining."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers import gauss_newton
from genrep_dist.core.solvers.gauss_newton import influence_kernel, square_root
from genrep_dist.errors import ConvergenceError, MethodError, ProblemError
from tests.core.models import NetworkExample, initialise, rows, seeded


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_square_root_squares_to_the_matrix(n: int, num_outputs: int, rank: int, seed: int) -> None:
    factor = rows(n, num_outputs, rank, seed=seed)
    curvature = factor @ factor.transpose(1, 2)
    root = square_root(curvature)
    torch.testing.assert_close(root @ root, curvature, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(root, root.transpose(1, 2), rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(root).min() > -1e-10


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_square_root_of_extreme_and_singular_matrices(scale: float) -> None:
    curvature = LOSSES["softmax"].second_derivative(rows(4, 3), torch.zeros(4, dtype=torch.int64)) * scale
    root = square_root(curvature)
    torch.testing.assert_close(root @ root, curvature, rtol=1e-9, atol=1e-12 * scale)


def test_negative_curvature_and_nan_are_refused() -> None:
    curvature = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    curvature[1, 0, 0] = -1e-6
    with pytest.raises(ProblemError, match="row 1"):
        square_root(curvature)
    with pytest.raises(ProblemError, match="row 2"):
        square_root(torch.tensor([1.0, 0.0, torch.nan]).reshape(3, 1, 1))
    with pytest.raises(ProblemError, match="wrong form"):
        square_root(torch.ones(3, 2))


def explicit_kernel(m: NetworkExample, delta: float) -> Tensor:
    """K_inf (N, C, M) by the P x P matrix."""
    return torch.einsum("ncp,mp->ncm", m.jacobian, torch.linalg.solve(m.gauss_newton(delta), m.test_gradient.T).T)


CASES = [("logistic", 1), ("softmax", 3), ("squared", 2)]


@pytest.mark.parametrize("damping", [1e-4, 1e-1, 10.0])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_influence_agrees_with_the_explicit_inverse(loss_name: str, num_outputs: int, damping: float) -> None:
    m = NetworkExample(loss_name, num_outputs)
    kernel, certificate = influence_kernel(m.gram, m.cross, m.curvature, damping=damping, relative=False, num_parameters=m.num_parameters)
    expected = explicit_kernel(m, damping)
    assert kernel.shape == (12, num_outputs, 5)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert certificate.damping == damping
    assert certificate.residual < 1e-10


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_columns_are_solved_some_at_a_time(loss_name: str, num_outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    m = NetworkExample(loss_name, num_outputs)
    monkeypatch.setattr(gauss_newton, "COLUMNS_AT_ONCE", 2)
    kernel, certificate = influence_kernel(m.gram, m.cross, m.curvature, damping=0.1, relative=False, num_parameters=m.num_parameters)
    expected = explicit_kernel(m, 0.1)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert 0 < certificate.residual < 1e-10


@pytest.mark.parametrize("width", [2, 20])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_relative_damping_is_in_units_of_the_mean_of_all_eigenvalues(loss_name: str, num_outputs: int, width: int) -> None:
    # Fewer parameters than rows of the gram, and more.
    m = NetworkExample(loss_name, num_outputs, width=width)
    mean = float(torch.linalg.eigvalsh(m.gauss_newton()).mean())
    kernel, certificate = influence_kernel(m.gram, m.cross, m.curvature, damping=0.1, relative=True, num_parameters=m.num_parameters)
    assert certificate.mean_eigenvalue == pytest.approx(mean, rel=1e-9)
    assert certificate.damping == pytest.approx(0.1 * mean, rel=1e-9)
    expected = explicit_kernel(m, 0.1 * mean)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_on_a_linear_model_the_gauss_newton_is_the_hessian(loss_name: str, num_outputs: int) -> None:
    model = initialise(nn.Sequential(nn.Linear(4, num_outputs)), 6)
    loss, train, test = LOSSES[loss_name], rows(10, 4), rows(3, 4, seed=2)
    targets = rows(10, num_outputs, seed=3) if loss_name == "squared" else torch.randint(max(2, num_outputs), (10,), generator=seeded(3))
    weight, bias = (p.detach() for p in model.parameters())
    size = weight.numel()

    def mean_loss(theta: Tensor) -> Tensor:
        logits = train @ theta[:size].reshape(weight.shape).T + theta[size:]
        return loss.value(logits, targets).mean()

    theta = torch.cat([weight.reshape(-1), bias]).requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(theta), theta, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient])
    jacobian, index = per_sample_gradients(model, train), torch.zeros(3, dtype=torch.int64)
    test_gradient = per_sample_gradients(model, test, index)
    damped = hessian + 0.01 * torch.eye(len(hessian), dtype=torch.float64)
    expected = torch.einsum("ncp,pq,mq->ncm", jacobian, torch.linalg.inv(damped), test_gradient)
    flat = jacobian.flatten(0, 1)
    kernel, _ = influence_kernel(
        flat @ flat.T,
        ntk_block(jacobian, test_gradient),
        loss.second_derivative(model_outputs(model, train).detach(), targets),
        damping=0.01,
        relative=False,
        num_parameters=len(hessian),
    )
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_the_influence_kernel_between_training_samples_is_symmetric_and_positive() -> None:
    m = NetworkExample("softmax", 3)
    columns = m.gram.reshape(12, 3, 36)
    kernel, _ = influence_kernel(m.gram, columns, m.curvature, damping=1e-3, relative=False, num_parameters=m.num_parameters)
    square = kernel.reshape(36, 36)
    torch.testing.assert_close(square, square.T, rtol=0, atol=1e-9 * float(square.abs().max()))
    assert torch.linalg.eigvalsh(square).min() > -1e-9 * square.abs().max()


def test_float32_matrices_are_solved_in_float64() -> None:
    m = NetworkExample("softmax", 3)
    kernel, certificate = influence_kernel(
        m.gram.float(), m.cross.float(), m.curvature.float(), damping=0.1, relative=True, num_parameters=m.num_parameters
    )
    assert kernel.dtype == torch.float64
    expected = explicit_kernel(m, certificate.damping)
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_certificate_is_the_residual_of_the_answer() -> None:
    m = NetworkExample("softmax", 3)
    kernel, certificate = influence_kernel(m.gram, m.cross, m.curvature, damping=1e-7, relative=False, num_parameters=m.num_parameters)
    weighted = torch.einsum("ncd,ndm->ncm", m.curvature, kernel).reshape(36, 5)
    left = 1e-7 * kernel.reshape(36, 5) + m.gram @ weighted / 12
    gap = (left - m.cross.reshape(36, 5)).norm(dim=0) / m.cross.reshape(36, 5).norm(dim=0)
    # Both are rounding errors of the same size; the reference sums in another order.
    assert 0.02 < certificate.residual / float(gap.max()) < 50
    assert certificate.residual < 1e-8


def test_a_small_damping_is_refined_to_float64() -> None:
    # One application of Woodbury's identity leaves 1e-10 here.
    m = NetworkExample("logistic", 1)
    _, certificate = influence_kernel(m.gram, m.cross, m.curvature, damping=1e-6, relative=False, num_parameters=m.num_parameters)
    assert certificate.residual < 1e-13


def test_no_test_points_and_a_zero_column() -> None:
    m = NetworkExample("logistic", 1)
    arguments = {"damping": 0.1, "relative": False, "num_parameters": m.num_parameters}
    empty, certificate = influence_kernel(m.gram, m.cross[:, :, :0], m.curvature, damping=0.1, relative=False, num_parameters=4)
    assert (empty.shape, certificate.residual) == ((12, 1, 0), 0.0)
    cross = m.cross.clone()
    cross[:, :, 2] = 0
    kernel, certificate = influence_kernel(m.gram, cross, m.curvature, **arguments)  # type: ignore[arg-type]
    assert kernel[:, :, 2].abs().max() == 0
    assert certificate.residual < 1e-10


def test_unsolvable_systems_are_refused() -> None:
    m = NetworkExample("logistic", 1)
    size = m.num_parameters
    with pytest.raises(ConvergenceError, match="not positive definite"):
        influence_kernel(-m.gram, m.cross, m.curvature, damping=1e-6, relative=False, num_parameters=size)
    with pytest.raises(ConvergenceError, match="residual"):
        influence_kernel(m.gram, m.cross, m.curvature, damping=1e-3, relative=False, num_parameters=size, tolerance=1e-30)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(MethodError, match="positive damping"):
            influence_kernel(m.gram, m.cross, m.curvature, damping=damping, relative=False, num_parameters=size)
    with pytest.raises(MethodError, match="zero everywhere"):
        influence_kernel(m.gram, m.cross, 0 * m.curvature, damping=0.1, relative=True, num_parameters=size)
    with pytest.raises(ProblemError, match="not convex"):
        influence_kernel(m.gram, m.cross, -m.curvature, damping=0.1, relative=False, num_parameters=size)
    for gram, cross, curvature, p in (
        (m.gram[:-1, :-1], m.cross, m.curvature, size),
        (m.gram, m.cross[:-1], m.curvature, size),
        (m.gram, m.cross[:, 0], m.curvature, size),
        (m.gram, m.cross, m.curvature[:, :, 0], size),
        (m.gram, m.cross, m.curvature, 0),
    ):
        with pytest.raises(ProblemError, match="do not fit"):
            influence_kernel(gram, cross, curvature, damping=0.1, relative=False, num_parameters=p)


def newton_logistic(features: Tensor, labels: Tensor, weights: Tensor, lam: float) -> Tensor:
    """Minimiser of sum_i weights_i L_i(theta) + lam/2 |theta|^2, to 1e-12 in the gradient."""
    theta = torch.zeros(features.shape[1], dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(features @ theta)
        gradient = features.T @ (weights * (p - labels)) + lam * theta
        if float(gradient.norm()) < 1e-12:
            return theta
        hessian = features.T @ ((weights * p * (1 - p)).unsqueeze(1) * features) + lam * torch.eye(len(theta), dtype=torch.float64)
        theta = theta - torch.linalg.solve(hessian, gradient)
    raise AssertionError("Newton's method did not converge")


def test_influence_predicts_leaving_one_out_of_a_logistic_regression() -> None:
    # Removing sample i takes its weight 1/n away: f_without(x) - f(x) = -(1/n) alpha_i K_inf(x_i, x) to first order, H with lam as damping.
    images, digits = load_digits(return_X_y=True)
    chosen = np.isin(digits, (3, 8))
    inputs = torch.tensor(images[chosen] / 16)
    features = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    labels = torch.tensor((digits[chosen] == 8).astype(float))
    n, lam = 150, 0.1
    train, y, test = features[:n], labels[:n], features[n : n + 4]
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    theta = newton_logistic(train, y, weights, lam)
    f = (train @ theta).unsqueeze(1)
    kernel, _ = influence_kernel(
        train @ train.T,
        (train @ test.T).unsqueeze(1),
        LOSSES["logistic"].second_derivative(f, y),
        damping=lam,
        relative=False,
        num_parameters=train.shape[1],
    )
    alpha = -LOSSES["logistic"].derivative(f, y)
    predicted = (-(alpha.unsqueeze(2) * kernel)[:, 0] / n).numpy()
    retrained = np.empty_like(predicted)
    for i in range(n):
        without = weights.clone()
        without[i] = 0
        retrained[i] = (test @ (newton_logistic(train, y, without, lam) - theta)).numpy()
    for m in range(4):
        slope = np.polyfit(predicted[:, m], retrained[:, m], 1)[0]
        assert np.corrcoef(predicted[:, m], retrained[:, m])[0, 1] > 0.99
        assert abs(slope - 1) < 0.05
