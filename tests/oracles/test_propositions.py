"""Propositions 8 and 9 and Corollary 12 against minimisations of Eq. 4 and 5 that know nothing of either.

The kernels have finitely many features Phi (N, C, P), so Eq. 4 can be solved over theta, f_K = <theta, Phi>, |f_K|^2 = |theta|^2. Where
P < N C the gram is singular and alpha not unique.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.attribution import attribute
from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.surrogate import solve_surrogate
from tests.core.models import mlp, rows

CASES = [("squared", 1), ("squared", 2), ("logistic", 1), ("softmax", 3)]
NumpyVector = np.ndarray[tuple[int], np.dtype[np.float64]]


def mean_loss(name: str, model: Tensor, f: Tensor) -> Tensor:
    """(1/n) sum_i L(f_i, the model's prediction i) by torch's own losses; ``model`` and ``f`` (N, C) before the link."""
    if name == "squared":
        return 0.5 * (f - model).square().sum(dim=1).mean()
    if name == "logistic":
        return functional.binary_cross_entropy_with_logits(f, torch.sigmoid(model))
    return functional.cross_entropy(f, torch.softmax(model, dim=1))


def derivative(name: str, model: Tensor, f: Tensor) -> Tensor:
    """dL_i/df_i (N, C) by autograd."""
    leaf = f.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(name, model, leaf) * len(f), leaf)
    return gradient


class Projection:
    """One instance of Eq. 4."""

    def __init__(self, name: str, num_outputs: int, n: int, width: int, lam: float, seed: int) -> None:
        self.name, self.lam = name, lam
        self.features = rows(n, num_outputs, width, seed=seed)
        self.model = 2 * rows(n, num_outputs, seed=seed + 1)
        self.flat = self.features.flatten(0, 1)
        self.gram = self.flat @ self.flat.T

    def matvec(self, alpha: Tensor) -> Tensor:
        return (self.gram @ alpha.reshape(-1)).reshape(alpha.shape)

    def equation_4(self, theta: Tensor) -> Tensor:
        penalty: Tensor = self.lam / 2 * theta.square().sum()
        return mean_loss(self.name, self.model, self.features @ theta) + penalty

    def equation_5(self, alpha: Tensor) -> float:
        f = self.matvec(alpha)
        return float(mean_loss(self.name, self.model, f) + self.lam / 2 * (alpha * f).sum())

    def minimiser(self) -> Tensor:
        """theta (P,) by Newton's method on Eq. 4, to 1e-12 in the gradient."""
        theta = torch.zeros(self.features.shape[2], dtype=torch.float64)
        gradient_of, hessian_of = torch.func.grad(self.equation_4), torch.func.hessian(self.equation_4)
        for _ in range(100):
            gradient = gradient_of(theta)
            if float(gradient.norm()) < 1e-12 * (1 + self.lam * float(theta.norm())):
                return theta
            step, size = torch.linalg.solve(hessian_of(theta), gradient), 1.0
            while self.equation_4(theta - size * step) > self.equation_4(theta) + 1e-14 and size > 1e-6:
                size /= 2
            theta = theta - size * step
        raise AssertionError("Newton's method did not converge")

    def null_vector(self, seed: int) -> Tensor:
        """A unit vector of null(K), (N, C); the case has to have one."""
        values, vectors = torch.linalg.eigh(self.gram)
        null = vectors[:, values < 1e-10 * values[-1]]
        direction = null @ rows(null.shape[1], seed=seed)
        unit: Tensor = direction / direction.norm()
        return unit.reshape(self.model.shape)


def projections(draw: st.DrawFn, *, singular: bool) -> Projection:
    name, num_outputs = draw(st.sampled_from(CASES))
    n = draw(st.integers(2, 9))
    width = draw(st.integers(1, min(8, n * num_outputs - 1) if singular else 8))
    return Projection(name, num_outputs, n, width, 10 ** draw(st.floats(-3, 0)), draw(st.integers(0, 1000)))


any_projection = st.composite(lambda draw: projections(draw, singular=False))()
singular_projection = st.composite(lambda draw: projections(draw, singular=True))()


@settings(max_examples=40)
@given(any_projection)
def test_proposition_8_the_surrogate_derivative_represents_the_minimiser_of_equation_4(p: Projection) -> None:
    theta = p.minimiser()
    f = p.features @ theta
    alpha = -derivative(p.name, p.model, f) / (len(f) * p.lam)
    scale = float(theta.abs().max()) + 1e-3
    torch.testing.assert_close(p.flat.T @ alpha.reshape(-1), theta, rtol=0, atol=1e-9 * scale / p.lam)
    solved, certificate = solve_surrogate(p.matvec, LOSSES[p.name], p.model, lam=p.lam, tolerance=1e-10)
    torch.testing.assert_close(solved, alpha, rtol=0, atol=1e-8 * float(alpha.abs().max()) / p.lam)
    torch.testing.assert_close(p.matvec(solved), f, rtol=0, atol=1e-8 * float(f.abs().max()) / p.lam)
    assert certificate.objective == pytest.approx(float(p.equation_4(theta)), rel=1e-9)


@settings(max_examples=40)
@given(singular_projection, st.integers(0, 1000), st.floats(0.1, 10))
def test_proposition_8_shifts_along_null_k_and_no_others_are_minimisers_too(p: Projection, seed: int, size: float) -> None:
    alpha, _ = solve_surrogate(p.matvec, LOSSES[p.name], p.model, lam=p.lam, tolerance=1e-9)
    value = p.equation_5(alpha)
    assert p.equation_5(alpha + size * p.null_vector(seed)) == pytest.approx(value, rel=1e-9, abs=1e-12)
    # A direction that K sees raises the penalty and leaves the best fit: by lam/2 of its squared norm in K at least.
    other = rows(*alpha.shape, seed=seed + 1)
    seen = float((other * p.matvec(other)).sum())
    assume(seen > 1e-3)
    assert p.equation_5(alpha + other) >= value + 0.49 * p.lam * seen


@pytest.mark.parametrize(("name", "num_outputs"), CASES)
def test_proposition_8_any_minimiser_of_equation_5_differs_from_alpha_star_by_a_null_vector(name: str, num_outputs: int) -> None:
    p = Projection(name, num_outputs, 10, 6, 0.1, 3)
    shape = p.model.shape

    def objective(flat: NumpyVector) -> tuple[float, NumpyVector]:
        alpha = torch.tensor(flat).reshape(shape)
        f = p.matvec(alpha)
        gradient = p.matvec(derivative(name, p.model, f) / shape[0] + p.lam * alpha)
        return p.equation_5(alpha), gradient.reshape(-1).numpy()

    start = rows(shape[0] * shape[1], seed=9).numpy()
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-17, "gtol": 1e-12})
    alpha, _ = solve_surrogate(p.matvec, LOSSES[name], p.model, lam=p.lam, tolerance=1e-11)
    difference = torch.tensor(found.x).reshape(shape) - alpha
    assert float(p.matvec(difference).abs().max()) < 1e-5
    # Two different answers nevertheless: the start's part in null(K) has stayed.
    assert float(difference.norm()) > 0.5


@settings(max_examples=40)
@given(singular_projection, st.integers(0, 1000))
def test_proposition_9_a_null_vector_is_the_zero_function(p: Projection, seed: int) -> None:
    elsewhere = 10 * rows(11, *p.features.shape[1:], seed=seed + 7)

    def function(weights: Tensor) -> Tensor:
        """sum_i weights_i K(x_i, .) at 11 points elsewhere, (11, C)."""
        return torch.einsum("bcp,ndp,nd->bc", elsewhere, p.features, weights)

    null = p.null_vector(seed)
    assert float(null.norm()) == pytest.approx(1)
    bound = 1e-6 * float(elsewhere.abs().max() * p.features.abs().max())
    assert float(function(null).abs().max()) < bound
    # Other unit vectors are seen, if not everywhere.
    other = rows(*p.model.shape, seed=seed)
    assert float(function(other / other.norm()).abs().max()) > 1e3 * bound


@pytest.mark.parametrize("kernel", ["ntk", "last-layer"])
@pytest.mark.parametrize(("name", "num_outputs"), [("logistic", 1), ("softmax", 3)])
def test_proposition_9_null_shifts_change_attributions_but_no_prediction(name: str, num_outputs: int, kernel: str) -> None:
    # More samples than parameters of the network, so that its own kernels are singular.
    model, n = mlp(num_outputs, seed=2, width=3), 40
    train, test = rows(n, 4), rows(9, 4, seed=2)
    index = torch.arange(9) % num_outputs
    if kernel == "ntk":
        jacobian = per_sample_gradients(model, train)
        flat = jacobian.flatten(0, 1)
        gram, block = flat @ flat.T, ntk_block(jacobian, per_sample_gradients(model, test, index))
    else:
        features = last_layer_features(model, train)
        gram = torch.kron(features @ features.T, torch.eye(num_outputs, dtype=torch.float64))
        block = last_layer_block(features, last_layer_features(model, test), index, num_outputs)
    values, vectors = torch.linalg.eigh(gram)
    null = vectors[:, values < 1e-10 * values[-1]]
    assert null.shape[1] > 0
    shift = 10 * (null @ rows(null.shape[1], seed=3)).reshape(n, num_outputs)

    def matvec(alpha: Tensor) -> Tensor:
        return (gram @ alpha.reshape(-1)).reshape(alpha.shape)

    alpha, _ = solve_surrogate(matvec, LOSSES[name], model_outputs(model, train).detach(), lam=1e-2)
    before, after = attribute(alpha, block), attribute(alpha + shift, block)
    # f_K(x) is the sum of the attributions (Eq. 3). That they themselves differ is why alpha* is the one that is reported.
    torch.testing.assert_close(after.sum(dim=0), before.sum(dim=0), rtol=0, atol=1e-9)
    assert float((after - before).abs().max()) > 0.1


class LastLayer:
    """A network's last layer: features with the bias's 1, outputs, and the surrogate's Theta_2 (L, C) = sum_i Phi(x_i) alpha_i^T."""

    def __init__(self, num_outputs: int, n: int = 50, width: int = 6) -> None:
        self.model = mlp(num_outputs, seed=3, width=width)
        train = 2 * rows(n, 4)
        self.features = last_layer_features(self.model, train)
        self.outputs = 3 * model_outputs(self.model, train).detach()

    def own_theta(self) -> Tensor:
        """The model's own (L, C), weights and bias; the outputs are three times the model's."""
        assert isinstance(self.model, nn.Sequential)
        weight, bias = (parameter.detach() for parameter in self.model[-1].parameters())
        return 3 * torch.cat([weight, bias.unsqueeze(1)], dim=1).T

    def surrogate(self, name: str, lam: float, tolerance: float = 1e-11) -> tuple[Tensor, Tensor]:
        alpha, _ = solve_surrogate(
            lambda vector: self.features @ (self.features.T @ vector), LOSSES[name], self.outputs, lam=lam, tolerance=tolerance
        )
        return alpha, self.features.T @ alpha


def scikit_learn_ridge(layer: LastLayer, lam: float) -> Tensor:
    # Its objective is 2 n times ours.
    ridge = Ridge(alpha=len(layer.features) * lam, fit_intercept=False, solver="cholesky")
    return torch.from_numpy(ridge.fit(layer.features.numpy(), layer.outputs.numpy()).coef_).T


def scikit_learn_logistic(layer: LastLayer, lam: float) -> Tensor:
    """Soft targets as weighted copies of each sample, one a class; its C = 1/(n lambda)."""
    n, num_outputs = layer.outputs.shape
    num_classes = max(2, num_outputs)
    if num_outputs == 1:
        p = torch.sigmoid(layer.outputs)
        weights = torch.cat([1 - p, p], dim=1)
    else:
        weights = torch.softmax(layer.outputs, dim=1)
    regression = LogisticRegression(C=1 / (n * lam), fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    copies = np.tile(layer.features.numpy(), (num_classes, 1))
    regression.fit(copies, np.repeat(np.arange(num_classes), n), sample_weight=weights.T.reshape(-1).numpy())
    return torch.from_numpy(regression.coef_).T


@pytest.mark.parametrize("lam", [1.0, 1e-1, 1e-3])
@pytest.mark.parametrize(
    ("name", "num_outputs", "reference"),
    [
        ("squared", 2, scikit_learn_ridge),
        ("logistic", 1, scikit_learn_logistic),
        ("softmax", 3, scikit_learn_logistic),
    ],
)
def test_corollary_12_theta_2_is_scikit_learns_regularised_solution(
    name: str, num_outputs: int, reference: Callable[[LastLayer, float], Tensor], lam: float
) -> None:
    layer = LastLayer(num_outputs)
    expected = reference(layer, lam)
    alpha, theta = layer.surrogate(name, lam)
    torch.testing.assert_close(theta, expected.reshape(theta.shape), rtol=0, atol=1e-7 * float(expected.abs().max()))
    # Eq. 12 at scikit-learn's solution.
    f = layer.features @ expected.reshape(theta.shape)
    by_equation_12 = -derivative(name, layer.outputs, f) / (len(f) * lam)
    torch.testing.assert_close(alpha, by_equation_12, rtol=0, atol=1e-6 * float(alpha.abs().max()))
    # The penalty is |Theta_2|^2.
    penalty = float((alpha * (layer.features @ theta)).sum())
    assert penalty == pytest.approx(float(expected.square().sum()), rel=1e-6)


@pytest.mark.parametrize(("name", "num_outputs"), [("logistic", 1), ("softmax", 3)])
def test_corollary_12_is_representer_point_selection_with_half_of_lambda(name: str, num_outputs: int) -> None:
    # Yeh et al. 2018 penalise by lambda_rps |Theta|^2, without the 1/2, and take alpha = -dL/(2 lambda_rps n).
    layer, lam_rps = LastLayer(num_outputs), 5e-3
    shape = layer.features.shape[1], num_outputs

    def objective(flat: NumpyVector) -> tuple[float, NumpyVector]:
        theta = torch.tensor(flat, requires_grad=True)
        value = mean_loss(name, layer.outputs, layer.features @ theta.reshape(shape)) + lam_rps * theta.square().sum()
        (gradient,) = torch.autograd.grad(value, theta)
        return float(value.detach()), gradient.numpy()

    start = np.zeros(shape[0] * shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-17, "gtol": 1e-12})
    fitted = torch.tensor(found.x).reshape(shape)
    alpha_rps = -derivative(name, layer.outputs, layer.features @ fitted) / (2 * lam_rps * len(layer.features))
    alpha, ours = layer.surrogate(name, 2 * lam_rps)
    torch.testing.assert_close(ours, fitted, rtol=0, atol=1e-6 * float(fitted.abs().max()))
    torch.testing.assert_close(alpha, alpha_rps, rtol=0, atol=1e-5 * float(alpha.abs().max()))


@pytest.mark.parametrize("n", [5, 50])
def test_as_lambda_falls_theta_2_tends_to_the_part_of_the_models_own_that_the_features_span(n: int) -> None:
    # Seven features: five samples do not span them, fifty do.
    layer = LastLayer(2, n=n)
    own = layer.own_theta()
    torch.testing.assert_close(layer.features @ own, layer.outputs, rtol=0, atol=1e-12)
    basis = torch.linalg.svd(layer.features, full_matrices=False).Vh
    spanned = basis.T @ (basis @ own)
    gaps = []
    for lam in (1e-2, 1e-4, 1e-6):
        _, theta = layer.surrogate("squared", lam, tolerance=1e-8)
        gaps.append(float((theta - spanned).abs().max()))
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2]
    assert math.isclose(float((spanned - own).abs().max()), 0, abs_tol=1e-9) == (n == 50)
