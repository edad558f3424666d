"""Kernel gradient descent against gradient descent on explicit parameters, the training loop, and the surrogate that it tends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.kernel_descent import kernel_descent, stability
from genrep_dist.core.solvers.surrogate import solve_surrogate
from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import train
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.randomness import Randomness
from tests.core.models import rows, seeded

CASES = [("squared", 2), ("logistic", 1), ("softmax", 3)]


class DescentExample:
    """Features Phi (N, C, P) of N samples and of 7 others, the outputs to approximate, and products with K = Phi Phi^T in two forms."""

    def __init__(self, loss_name: str, num_outputs: int, n: int = 13, width: int = 9, seed: int = 0) -> None:
        self.loss = LOSSES[loss_name]
        self.features = rows(n, num_outputs, width, seed=seed) / math.sqrt(width)
        self.elsewhere = rows(7, num_outputs, width, seed=seed + 1) / math.sqrt(width)
        self.outputs = 2 * rows(n, num_outputs, seed=seed + 2)
        flat = self.features.flatten(0, 1)
        self.gram = flat @ flat.T

    def matvec(self, alpha: Tensor) -> Tensor:
        return (self.gram @ alpha.reshape(-1)).reshape(alpha.shape)

    def batch_matvec(self, batch: Tensor, update: Tensor) -> Tensor:
        return torch.einsum("ncp,p->nc", self.features, torch.einsum("bcp,bc->p", self.features[batch], update))

    def at(self, features: Tensor, alpha: Tensor) -> Tensor:
        """sum_i alpha_i K(x_i, .) at other samples, from their features (B, C, P)."""
        return torch.einsum("bcp,ndp,nd->bc", features, self.features, alpha)


def schedule(kind: Literal["constant", "cosine"], steps: int, rate: float) -> list[float]:
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=rate, schedule=kind)
    return [recipe.rate(step, steps) for step in range(steps)]


def random_batches(n: int, steps: int, seed: int = 5) -> list[Tensor]:
    """Shuffled batches of changing sizes."""
    generator = seeded(seed)
    return [torch.randperm(n, generator=generator)[: 1 + (step * 3) % 6] for step in range(steps)]


def parameter_descent(m: DescentExample, rates: Sequence[float], batches: Sequence[Tensor]) -> list[Tensor]:
    """theta (P,) after every step of gradient descent on the batch mean of torch's own losses, f = <theta, Phi>, by autograd."""
    theta = torch.zeros(m.features.shape[2], dtype=torch.float64)
    path = []
    for rate, batch in zip(rates, batches, strict=True):
        leaf = theta.clone().requires_grad_()
        f, model = m.features[batch] @ leaf, m.outputs[batch]
        if m.loss.name == "squared":
            value = 0.5 * (f - model).square().sum(dim=1).mean()
        elif m.loss.name == "logistic":
            value = functional.binary_cross_entropy_with_logits(f, torch.sigmoid(model))
        else:
            value = functional.cross_entropy(f, torch.softmax(model, dim=1))
        (gradient,) = torch.autograd.grad(value, leaf)
        theta = theta - rate * gradient
        path.append(theta)
    return path


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_every_step_is_gradient_descent_on_the_parameters(
    loss_name: str, num_outputs: int, kind: Literal["constant", "cosine"], in_batches: bool
) -> None:
    m = DescentExample(loss_name, num_outputs)
    steps = 20
    rates = schedule(kind, steps, 0.4)
    batches = random_batches(13, steps) if in_batches else None
    path = parameter_descent(m, rates, batches or [torch.arange(13)] * steps)
    for done in range(1, steps + 1):
        alpha, f, certificate = kernel_descent(
            m.matvec,
            m.loss,
            m.outputs,
            rates=rates[:done],
            batches=batches[:done] if batches else None,
            batch_matvec=m.batch_matvec if batches else None,
        )
        assert alpha.dtype == f.dtype == torch.float64
        torch.testing.assert_close(f, m.features @ path[done - 1], rtol=0, atol=1e-12)
        # The identity of Eq. 8 everywhere, not only on the training samples.
        torch.testing.assert_close(m.at(m.elsewhere, alpha), m.elsewhere @ path[done - 1], rtol=0, atol=1e-12)
        assert certificate.steps == done
    # The descent must move, or the test would be empty.
    assert float((m.elsewhere @ path[-1]).abs().max()) > 0.1
    assert float((path[-1] - path[-2]).abs().max()) > 1e-5


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_it_is_what_the_observer_tracks_when_a_linear_model_learns_the_predictions(
    loss_name: str, num_outputs: int, kind: Literal["constant", "cosine"]
) -> None:
    """Eq. 9 and Eq. 10 are one for a linear model that starts at zero and is trained against the soft predictions, same batches."""
    n, loss = 23, LOSSES[loss_name]
    inputs, outputs = rows(n, 5), 2 * rows(n, num_outputs, seed=2)
    recipe = Recipe(epochs=3, batch_size=6, learning_rate=0.3, schedule=kind)
    model = nn.Sequential(nn.Linear(5, num_outputs)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    tracked, randomness = TrackingImportance(), Randomness(4)
    train(model, loss, recipe, Dataset(inputs, loss.soft_targets(outputs), torch.arange(n)), randomness, observers=[tracked])
    features = last_layer_features(model.eval(), inputs)
    batches = [batch for epoch in (1, 2, 3) for batch in torch.split(randomness.order(epoch, n), 6)]
    rates = [recipe.rate(step, len(batches)) for step in range(len(batches))]
    alpha, f, _ = kernel_descent(
        lambda vector: features @ (features.T @ vector),
        loss,
        outputs,
        rates=rates,
        batches=batches,
        batch_matvec=lambda batch, update: features @ (features[batch].T @ update),
    )
    assert tracked.alpha is not None
    torch.testing.assert_close(alpha, tracked.alpha, rtol=0, atol=1e-13)
    torch.testing.assert_close(f, model_outputs(model, inputs).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_products_of_tensor_and_features_and_of_rows_and_the_whole_agree(loss_name: str, num_outputs: int) -> None:
    m = DescentExample(loss_name, num_outputs)
    rates, batches = schedule("cosine", 30, 0.4), random_batches(13, 30)
    all_rows = torch.arange(13)

    def from_features(alpha: Tensor) -> Tensor:
        return m.batch_matvec(all_rows, alpha)

    whole = [kernel_descent(product, m.loss, m.outputs, rates=rates) for product in (m.matvec, from_features)]
    torch.testing.assert_close(whole[0][:2], whole[1][:2], rtol=0, atol=1e-12)
    # A batch of all rows is the same step.
    alpha, f, _ = kernel_descent(m.matvec, m.loss, m.outputs, rates=rates, batches=[all_rows.flip(0)] * 30, batch_matvec=m.batch_matvec)
    torch.testing.assert_close((alpha, f), whole[0][:2], rtol=0, atol=1e-12)
    with_batch_matvec = kernel_descent(m.matvec, m.loss, m.outputs, rates=rates, batches=batches, batch_matvec=m.batch_matvec)
    without = kernel_descent(m.matvec, m.loss, m.outputs, rates=rates, batches=batches)
    torch.testing.assert_close(with_batch_matvec[:2], without[:2], rtol=0, atol=1e-12)
    assert not torch.allclose(without[0], whole[0][0], atol=1e-3)


def test_a_row_twice_in_a_batch_counts_twice_and_a_row_in_none_has_no_importance() -> None:
    m = DescentExample("logistic", 1)
    batch = torch.tensor([4, 2, 4])
    alpha, f, _ = kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.6], batches=[batch], batch_matvec=m.batch_matvec)
    expected = torch.zeros(13, 1, dtype=torch.float64)
    difference = torch.sigmoid(m.outputs) - 0.5
    expected[2], expected[4] = 0.2 * difference[2], 0.4 * difference[4]
    torch.testing.assert_close(alpha, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(f, m.gram @ expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize(("loss_name", "num_outputs", "tolerance"), [("squared", 2, 1e-6), ("logistic", 1, 1e-5), ("softmax", 3, 1e-5)])
def test_the_limit_is_the_surrogate_with_a_small_lambda(loss_name: str, num_outputs: int, tolerance: float, in_batches: bool) -> None:
    # Features of 300 dimensions for 36 numbers or fewer: eigenvalues between 0.4 and 1.9.
    m = DescentExample(loss_name, num_outputs, n=12, width=300)
    m.outputs = m.outputs / 2
    limits = stability(m.matvec, m.loss, m.outputs)
    rates = [limits.largest_stable_rate / (4 if in_batches else 2)] * 2500
    batches = [torch.arange(6) if step % 2 else torch.arange(6, 12) for step in range(2500)] if in_batches else None
    alpha, f, certificate = kernel_descent(m.matvec, m.loss, m.outputs, rates=rates, batches=batches)
    reference, _ = solve_surrogate(m.matvec, m.loss, m.outputs, lam=1e-8, tolerance=5e-9)
    projected = m.matvec(reference)
    assert float((f - projected).abs().max()) < tolerance
    assert float((alpha - reference).abs().max()) < 3 * tolerance
    assert certificate.remaining_derivative < tolerance
    # Far from the limit it is not the surrogate.
    early = kernel_descent(m.matvec, m.loss, m.outputs, rates=rates[:3], batches=batches[:3] if batches else None)[1]
    assert float((early - projected).abs().max()) > 0.05


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CASES), st.integers(1, 9), st.integers(1, 12), st.integers(1, 6), st.floats(-2, 2), st.integers(0, 1000))
def test_half_of_the_stable_rate_descends_at_any_scale(
    case: tuple[str, int], n: int, width: int, steps: int, log_scale: float, seed: int
) -> None:
    m = DescentExample(*case, n=n, width=width, seed=seed)
    m.gram *= 10**log_scale
    limits = stability(m.matvec, m.loss, m.outputs)
    # Softmax curvature may be larger in between than at both ends: up to 1/2 against 1/3 at the uniform prediction.
    rates = [limits.largest_stable_rate / 2] * steps
    objectives = [kernel_descent(m.matvec, m.loss, m.outputs, rates=rates[:t])[2].objective for t in range(1, steps + 1)]
    start = float(m.loss.value(torch.zeros_like(m.outputs), m.loss.soft_targets(m.outputs)).mean())
    for before, after in zip([start, *objectives], objectives, strict=False):
        assert after <= before + 1e-12


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_stability_is_the_largest_eigenvalue_of_the_explicit_hessian(loss_name: str, num_outputs: int) -> None:
    m = DescentExample(loss_name, num_outputs)
    targets, largest = m.loss.soft_targets(m.outputs), 0.0
    for f in (torch.zeros_like(m.outputs), m.outputs):
        hessian = torch.einsum("ncp,ncd,ndq->pq", m.features, m.loss.second_derivative(f, targets), m.features) / 13
        largest = max(largest, float(torch.linalg.eigvalsh(hessian)[-1]))
    limits = stability(m.matvec, m.loss, m.outputs)
    assert limits.largest_eigenvalue == pytest.approx(largest, rel=0.01)
    assert limits.largest_stable_rate == pytest.approx(2 / largest, rel=0.01)
    assert 0 < limits.products <= 200


def test_squared_loss_is_stable_up_to_that_rate_and_not_above() -> None:
    m = DescentExample("squared", 1)
    limit = 2 / float(torch.linalg.eigvalsh(m.gram)[-1] / 13)
    kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.99 * limit] * 2000)
    with pytest.raises(ConvergenceError, match=r"diverges"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[1.01 * limit] * 2000)


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_a_divergence_is_refused_with_its_numbers(loss_name: str, num_outputs: int, in_batches: bool) -> None:
    m = DescentExample(loss_name, num_outputs)
    limits = stability(m.matvec, m.loss, m.outputs)
    rate = 200 * limits.largest_stable_rate
    batches = random_batches(13, 50) if in_batches else None
    with pytest.raises(ConvergenceError) as caught:
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[rate] * 50, batches=batches)
    message = str(caught.value)
    for number in (rate, limits.largest_eigenvalue, limits.largest_stable_rate):
        assert f"{number:.3g}" in message
    assert "of 50" in message


@pytest.mark.parametrize(("loss_name", "num_outputs"), [("logistic", 1), ("softmax", 3)])
def test_an_overshoot_that_settles_is_not_a_divergence(loss_name: str, num_outputs: int) -> None:
    # A kernel with a large part common to all samples, as trained networks have, and unequal classes: the first step, from f = 0 where
    # the loss is curved most, goes far out to where it is flat.
    m = DescentExample(loss_name, num_outputs, width=60)
    m.outputs = 4 * m.outputs
    m.gram += 25 * torch.kron(torch.ones(13, 13, dtype=torch.float64), torch.eye(num_outputs, dtype=torch.float64))
    rate = 20 * stability(m.matvec, m.loss, m.outputs).largest_stable_rate
    targets, objectives = m.loss.soft_targets(m.outputs), []

    class Watched:
        name, derivative, second_derivative, soft_targets = loss_name, m.loss.derivative, m.loss.second_derivative, m.loss.soft_targets

        def value(self, outputs: Tensor, given: Tensor) -> Tensor:
            objectives.append(float(m.loss.value(outputs, given).mean()))
            return m.loss.value(outputs, given)

    rates = schedule("cosine", 300, rate)
    _, _, certificate = kernel_descent(m.matvec, Watched(), m.outputs, rates=rates)
    start, lowest = certificate.initial_objective, float(m.loss.value(m.outputs, targets).mean())
    assert max(objectives) - lowest > 10 * (start - lowest)
    assert certificate.objective - lowest < 0.5 * (start - lowest)
    # Before it has settled, the same descent is refused.
    with pytest.raises(ConvergenceError, match="diverges"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=rates[:1])


def test_an_overflow_is_a_divergence_and_nan_in_the_gram_is_not() -> None:
    m = DescentExample("squared", 1)
    with pytest.raises(ConvergenceError, match="diverges"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[1e308] * 3)
    m.gram[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"products with K hold NaN or Inf[\s\S]*\[3\]"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.1])


def test_an_indefinite_gram_is_suspected_when_small_rates_diverge() -> None:
    m = DescentExample("squared", 1)
    m.gram = -m.gram
    with pytest.raises(ConvergenceError, match="positive semi-definite"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.5] * 500)


def test_the_certificate_is_that_of_the_answer() -> None:
    m = DescentExample("softmax", 3)
    calls: list[str] = []

    def matvec(alpha: Tensor) -> Tensor:
        calls.append("matvec")
        return m.matvec(alpha)

    def batch_matvec(batch: Tensor, update: Tensor) -> Tensor:
        calls.append("batch_matvec")
        return m.batch_matvec(batch, update)

    rates, batches = schedule("cosine", 25, 0.4), random_batches(13, 25)
    alpha, f, c = kernel_descent(matvec, m.loss, m.outputs, rates=rates, batches=batches, batch_matvec=batch_matvec)
    assert torch.equal(f, m.matvec(alpha))
    targets = torch.softmax(m.outputs, dim=1)
    assert c.objective == pytest.approx(float(functional.cross_entropy(f, targets)), rel=1e-12)
    assert c.initial_objective == pytest.approx(math.log(3), rel=1e-12)
    assert c.lowest_objective == pytest.approx(float(functional.cross_entropy(m.outputs, targets)), rel=1e-12)
    assert c.lowest_objective < c.objective < c.initial_objective
    assert c.efficiency_gap == pytest.approx(float((m.outputs - f).abs().max()), rel=1e-12)
    remaining = float((torch.softmax(f, dim=1) - targets).norm() / (1 / 3 - targets).norm())
    assert c.remaining_derivative == pytest.approx(remaining, rel=1e-9)
    assert c.largest_rate == 0.4
    assert c.products == len(calls)
    assert calls.count("batch_matvec") == 25
    limits = stability(m.matvec, m.loss, m.outputs)
    assert (c.largest_eigenvalue, c.largest_stable_rate) == (limits.largest_eigenvalue, limits.largest_stable_rate)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_a_model_that_is_zero_everywhere_has_no_importances(loss_name: str, num_outputs: int) -> None:
    m = DescentExample(loss_name, num_outputs)
    alpha, f, certificate = kernel_descent(m.matvec, m.loss, torch.zeros(13, num_outputs), rates=[0.3] * 5)
    assert float(alpha.abs().max()) < 1e-15
    assert float(f.abs().max()) < 1e-15
    assert certificate.efficiency_gap < 1e-15


def test_a_zero_kernel_bounds_no_rate() -> None:
    m = DescentExample("logistic", 1)
    alpha, f, certificate = kernel_descent(torch.zeros_like, m.loss, m.outputs, rates=[0.3, 0.1])
    assert float(f.abs().max()) == 0
    torch.testing.assert_close(alpha, 0.4 / 13 * (torch.sigmoid(m.outputs) - 0.5), rtol=1e-12, atol=0)
    assert (certificate.largest_eigenvalue, certificate.largest_stable_rate) == (0.0, math.inf)


def test_float32_outputs_are_approximated_in_float64() -> None:
    m = DescentExample("logistic", 1)
    alpha, _, _ = kernel_descent(m.matvec, m.loss, m.outputs.float().requires_grad_(), rates=[0.4] * 9)
    expected, _, _ = kernel_descent(m.matvec, m.loss, m.outputs.float().double(), rates=[0.4] * 9)
    assert torch.equal(alpha, expected)
    assert not alpha.requires_grad


def test_invalid_arguments_are_refused() -> None:
    m = DescentExample("squared", 2)
    all_rows = torch.arange(13)
    rate_lists: list[list[float]] = [[], [0.1, -0.1], [math.nan], [math.inf]]
    for rates in rate_lists:
        with pytest.raises(MethodError, match="descent rates"):
            kernel_descent(m.matvec, m.loss, m.outputs, rates=rates)
    for batches in (
        [all_rows],
        [all_rows, all_rows[:0]],
        [all_rows, all_rows.double()],
        [all_rows, all_rows + 1],
        [all_rows - 1, all_rows],
        [all_rows, all_rows.reshape(1, 13)],
    ):
        with pytest.raises(MethodError, match="descent batches"):
            kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.1, 0.1], batches=batches)
    with pytest.raises(MethodError, match="descent outputs"):
        kernel_descent(m.matvec, m.loss, m.outputs[:, 0], rates=[0.1])
    with pytest.raises(ProblemError, match=r"wrong form[\s\S]*matvec"):
        kernel_descent(lambda alpha: alpha.float(), m.loss, m.outputs, rates=[0.1])
    with pytest.raises(ProblemError, match=r"wrong form[\s\S]*batch_matvec"):
        kernel_descent(m.matvec, m.loss, m.outputs, rates=[0.1], batches=[all_rows[:4]], batch_matvec=lambda _, update: update)
    broken = m.outputs.clone()
    broken[5, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"outputs hold NaN or Inf[\s\S]*\[5\]"):
        kernel_descent(m.matvec, m.loss, broken, rates=[0.1])
