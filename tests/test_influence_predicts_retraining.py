"""Influence predicts retraining where theory says that it must: linear models with an L2 penalty, every training sample left out in turn.

The objective is F(theta) = (1/n) sum_i L(f_theta(x_i), y_i) + (lam/2) |theta|^2, strictly convex, with minimiser theta*; theta holds the
bias too, as the weight of a constant-1 feature. Its Hessian is H + lam I, H the Hessian of the mean loss: so the damping of the
influence kernel is lam, nothing else, and the generalized Gauss-Newton equals H because f is linear in theta.

*Leaving sample i out* takes its term away and changes nothing else: F_i = F - (1/n) L_i, the regularisation of a sample is still n lam.
From 0 = grad F_i(theta_i) = -(1/n) grad L_i(theta*) + (H + lam I)(theta_i - theta*) to first order,

    theta_i - theta* = (1/n) (H + lam I)^-1 grad L_i,            grad L_i = J_i^T dL_i/df = -J_i^T alpha_i  (target derivative, Eq. 7)
    f_i(x) - f(x)    = -(1/n) alpha_i^T K_inf(x_i, x) = -(1/n) phi(x_i -> x)                                (Eq. 15, 16)

The *scale* is 1/n and the *sign* is minus: phi > 0 says that the sample raises f(x), so without it f(x) falls.

*Taking the mean over the n - 1 samples that remain*, as training without a sample does, keeps lam and not n lam; its minimiser is
another one. With grad F(theta*) = 0 the same step gives

    f_i(x) - f(x) = (-phi(x_i -> x) + lam <df(x)/dtheta, (H + lam I)^-1 theta*>) / (n - 1)

where the second term is the same for all i: it moves no rank, only the curve.

Retraining is by Newton's method until the gradient of the objective is below 1e-12; scikit-learn confirms the objective.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from genrep_dist.core.attribution import attribute
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES, Loss
from genrep_dist.core.solvers.conjugate_gradients import conjugate_gradients
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.hessian import hessian_product, influence_block

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """Real data, standardised by the training rows, with a constant-1 feature last: X (n, d), y (n,), test rows (M, d)."""

    loss: Loss
    num_outputs: int
    lam: float
    train: Tensor
    targets: Tensor
    test: Tensor


def regression(name: str) -> Regression:
    """Breast cancer (standardised) and the digits 3 and 8 (pixels in [0, 1]) with one logit, wine (standardised) with three."""
    features, classes = {"breast cancer": load_breast_cancer, "digits": load_digits, "wine": load_wine}[name](return_X_y=True)
    if name == "digits":
        chosen = np.isin(classes, (3, 8))
        features, classes = features[chosen] / 16, (classes[chosen] == 8).astype(int)
    order = np.random.default_rng(0).permutation(len(features))
    features, classes = features[order], classes[order]
    n = len(features) - 60
    if name != "digits":
        features = (features - features[:n].mean(axis=0)) / features[:n].std(axis=0)
    data = torch.tensor(np.hstack([features, np.ones((len(features), 1))]))
    loss, num_outputs = ("softmax", 3) if name == "wine" else ("logistic", 1)
    # Strong enough that no sample has much leverage on the fit: what is first-order must be small.
    lam = {"breast cancer": 1.0, "digits": 0.1, "wine": 1.0}[name]
    return Regression(LOSSES[loss], num_outputs, lam, data[:n], torch.tensor(classes[:n]), data[n:])


def newton(problem: Regression, weights: Tensor, start: Tensor) -> Tensor:
    """Minimiser theta (C, d) of sum_i weights_i L_i + (lam/2) |theta|^2, to 1e-12 in the gradient; plain Newton from ``start``."""
    theta = start
    eye = problem.lam * torch.eye(theta.numel(), dtype=torch.float64)
    for _ in range(60):
        f = problem.train @ theta.T
        slope = weights.unsqueeze(1) * problem.loss.derivative(f, problem.targets)
        gradient = (slope.T @ problem.train + problem.lam * theta).reshape(-1)
        if float(gradient.norm()) < 1e-12:
            return theta
        curvature = weights.reshape(-1, 1, 1) * problem.loss.second_derivative(f, problem.targets)
        blocks = torch.einsum("ncd,np->cdpn", curvature, problem.train) @ problem.train
        hessian = blocks.transpose(1, 2).reshape(len(eye), len(eye)) + eye
        theta = theta - torch.linalg.solve(hessian, gradient).reshape(theta.shape)
    raise AssertionError("Newton's method did not converge")


class Explained:
    """The trained model of a problem and its influence function, as this package computes them, by both curvatures."""

    def __init__(self, problem: Regression) -> None:
        self.problem, self.n = problem, len(problem.train)
        self.model = nn.Linear(problem.train.shape[1], problem.num_outputs, bias=False).double().eval()
        uniform = torch.full((self.n,), 1 / self.n, dtype=torch.float64)
        self.theta = newton(problem, uniform, torch.zeros(problem.num_outputs, problem.train.shape[1], dtype=torch.float64))
        with torch.no_grad():
            self.model.weight.copy_(self.theta)
            self.fitted = model_outputs(self.model, problem.train)
            self.predicted = model_outputs(self.model, problem.test)
        # The declared target: the logit of the class that the model predicts.
        self.output_index = self.predicted.argmax(dim=1)
        self.alpha = target_importance(problem.loss, self.fitted, problem.targets)
        self.jacobian = per_sample_gradients(self.model, problem.train)
        self.gradient = per_sample_gradients(self.model, problem.test, self.output_index)
        self.product = hessian_product(self.model, problem.loss, problem.train, problem.targets, batch_size=4096)

    def phi_by_the_dual_system(self) -> Tensor:
        flat = self.jacobian.flatten(0, 1)
        kernel, _ = influence_kernel(
            flat @ flat.T,
            ntk_block(self.jacobian, self.gradient),
            self.problem.loss.second_derivative(self.fitted, self.problem.targets),
            damping=self.problem.lam,
            relative=False,
            num_parameters=flat.shape[1],
        )
        return attribute(self.alpha, kernel)

    def phi_by_the_hessian(self) -> Tensor:
        solution, certificate = conjugate_gradients(self.product, self.gradient.T, damping=self.problem.lam, tolerance=1e-10)
        assert certificate.negative_curvature == 0
        return attribute(self.alpha, influence_block(self.jacobian, solution))

    def retrained(self, weights: Callable[[int], Tensor]) -> Array:
        """f_i(x) - f(x) (n, M) of the declared outputs, for each sample i with the retraining's ``weights(i)`` (n,)."""
        changes = []
        for i in range(self.n):
            logits = self.problem.test @ newton(self.problem, weights(i), self.theta).T
            changes.append((logits - self.predicted).gather(1, self.output_index.unsqueeze(1))[:, 0])
        return torch.stack(changes).numpy()

    def without(self, i: int, total: int) -> Tensor:
        """Weights 1/``total`` for every sample but ``i``."""
        weights = torch.full((self.n,), 1 / total, dtype=torch.float64)
        weights[i] = 0
        return weights


def pearson_and_slope(predicted: Array, retrained: Array) -> tuple[float, float]:
    return float(np.corrcoef(predicted, retrained)[0, 1]), float(np.polyfit(predicted, retrained, 1)[0])


def assert_predicts(predicted: Array, retrained: Array) -> None:
    """Pearson above 0.99 for all pairs and for each test point, slope of retrained on predicted within 5% of 1."""
    assert predicted.shape == retrained.shape
    pearson, slope = pearson_and_slope(predicted.ravel(), retrained.ravel())
    assert pearson > 0.99
    assert abs(slope - 1) < 0.05
    assert min(pearson_and_slope(a, b)[0] for a, b in zip(predicted.T, retrained.T, strict=True)) > 0.99


NAMES = ["breast cancer", "digits", "wine"]


@functools.cache
def explained(name: str) -> Explained:
    return Explained(regression(name))


@pytest.mark.parametrize("name", NAMES)
def test_both_curvatures_are_the_same_influence_on_a_linear_model(name: str) -> None:
    e = explained(name)
    phi = e.phi_by_the_dual_system()
    torch.testing.assert_close(e.phi_by_the_hessian(), phi, rtol=0, atol=1e-8 * float(phi.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_leaving_each_sample_out(name: str) -> None:
    e = explained(name)
    retrained = e.retrained(lambda i: e.without(i, e.n))
    assert len(retrained) == e.n
    for phi in (e.phi_by_the_dual_system(), e.phi_by_the_hessian()):
        assert_predicts((-phi / e.n).numpy(), retrained)


@pytest.mark.parametrize("name", NAMES)
def test_an_infinitesimal_weight_is_predicted_exactly(name: str) -> None:
    # The central difference of retrainings with weight (1 +- h)/n: influence is its derivative, and no 5% are needed.
    e, h = explained(name), 1e-3

    def weights(i: int, sign: int) -> Tensor:
        result = torch.full((e.n,), 1 / e.n, dtype=torch.float64)
        result[i] *= 1 + sign * h
        return result

    derivative = (e.retrained(lambda i: weights(i, 1)) - e.retrained(lambda i: weights(i, -1))) / (2 * h)
    predicted = (e.phi_by_the_hessian() / e.n).numpy()
    assert np.abs(derivative - predicted).max() < 1e-6 * np.abs(predicted).max()


@pytest.mark.parametrize("name", NAMES)
def test_training_on_the_mean_of_the_others_shifts_every_prediction_by_one_number(name: str) -> None:
    e = explained(name)
    retrained = e.retrained(lambda i: e.without(i, e.n - 1))
    pull, _ = conjugate_gradients(e.product, e.theta.reshape(-1, 1), damping=e.problem.lam, tolerance=1e-10)
    shift = e.problem.lam * (e.gradient @ pull)[:, 0]
    predicted = ((-e.phi_by_the_dual_system() + shift) / (e.n - 1)).numpy()
    assert_predicts(predicted, retrained)
    # The slope does not see the shift; the mean does.
    gap = np.abs((retrained - predicted).mean(axis=0)).max()
    assert gap < 0.05 * np.abs(shift.numpy() / (e.n - 1)).max()


@pytest.mark.parametrize("name", ["breast cancer", "digits"])
def test_the_objective_is_that_of_scikit_learn(name: str) -> None:
    # Its objective C sum_i L_i + |w|^2/2 is ours divided by lam when C = 1/(n lam), with or without a sample left out.
    e = explained(name)
    weights = {"all": torch.full((e.n,), 1 / e.n, dtype=torch.float64), "without 7": e.without(7, e.n)}
    for used in weights.values():
        model = LogisticRegression(C=1 / (e.n * e.problem.lam), fit_intercept=False, tol=1e-12, max_iter=1000, solver="newton-cholesky")
        model.fit(e.problem.train.numpy(), e.problem.targets.numpy(), sample_weight=used.numpy() * e.n)
        np.testing.assert_allclose(model.coef_, newton(e.problem, used, e.theta).numpy(), atol=1e-8)
