"""The surrogate against closed forms, scikit-learn and a direct minimisation of Eq. 5."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.losses import LOSSES, Loss, SquaredLoss
from genrep_dist.core.solvers.dual_system import DualSystem, GramColumns, Matvec
from genrep_dist.core.solvers.nystrom import nystrom_bytes
from genrep_dist.core.solvers.surrogate import solve_surrogate
from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, ProblemError
from tests.core.models import initialise, rows


def product_with(gram: Tensor) -> Matvec:
    """K alpha for a gram (NC, NC) over flattened (N, C) rows."""

    def product(vector: Tensor) -> Tensor:
        result: Tensor = (gram @ vector.reshape(-1)).reshape(vector.shape)
        return result

    return product


def columns_of(gram: Tensor) -> GramColumns:
    return lambda chosen: gram[:, chosen]


def random_gram(size: int, width: int, seed: int = 0) -> Tensor:
    features = rows(size, width, seed=seed) / math.sqrt(width)
    return features @ features.T


def proposition_8(gram: Tensor, loss: Loss, outputs: Tensor, alpha: Tensor, lam: float) -> Tensor:
    """The right-hand side of Eq. 6 at alpha."""
    f = (gram @ alpha.reshape(-1)).reshape(alpha.shape)
    return -loss.derivative(f, loss.soft_targets(outputs)) / (len(outputs) * lam)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("lam", [1.0, 1e-2, 1e-4])
def test_squared_loss_is_kernel_ridge_regression(num_outputs: int, lam: float) -> None:
    n = 60
    gram, f = random_gram(n * num_outputs, 40), 2 * rows(n, num_outputs, seed=4)
    closed = np.linalg.solve(gram.numpy() + n * lam * np.eye(len(gram)), f.numpy().reshape(-1)).reshape(n, num_outputs)
    alpha, certificate = solve_surrogate(product_with(gram), SquaredLoss(), f, lam=lam, tolerance=1e-11)
    assert alpha.dtype == torch.float64
    assert certificate.converged
    np.testing.assert_allclose(alpha.numpy(), closed, rtol=0, atol=1e-9 * np.abs(closed).max())
    gap = np.abs(f.numpy().reshape(-1) - gram.numpy() @ closed.reshape(-1)).max()
    assert certificate.efficiency_gap == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("lam", [1e-1, 1e-3])
def test_logistic_loss_is_scikit_learns_regression_on_the_features(lam: float) -> None:
    # Corollary 12: the surrogate in the last-layer kernel is L2 logistic regression on the features (with the bias among them, so
    # that it is regularised too), soft targets entering as weighted pairs of both labels, and C = 1/(n lambda).
    n, width = 80, 6
    features = torch.cat([rows(n, width, seed=3), torch.ones(n, 1, dtype=torch.float64)], dim=1)
    f = 2 * rows(n, 1, seed=4)
    soft = torch.sigmoid(f[:, 0]).numpy()
    reference = LogisticRegression(C=1 / (n * lam), fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000)
    pairs = np.concatenate([features.numpy(), features.numpy()])
    labels = np.concatenate([np.ones(n), np.zeros(n)])
    reference.fit(pairs, labels, sample_weight=np.concatenate([soft, 1 - soft]))
    alpha, _ = solve_surrogate(lambda v: features @ (features.T @ v), LOSSES["logistic"], f, lam=lam, tolerance=1e-11)
    np.testing.assert_allclose((features.T @ alpha)[:, 0].numpy(), reference.coef_[0], rtol=1e-7, atol=1e-9)
    # And alpha itself, from Eq. 12 at scikit-learn's solution.
    probability = reference.predict_proba(features.numpy())[:, 1]
    np.testing.assert_allclose(alpha[:, 0].numpy(), -(probability - soft) / (n * lam), rtol=0, atol=1e-8)


@pytest.mark.parametrize("coupled", [False, True])
def test_softmax_loss_agrees_with_direct_minimisation_of_equation_5(coupled: bool) -> None:
    n, num_outputs, lam = 25, 3, 1e-2
    size = n * num_outputs
    gram = random_gram(size, 50) if coupled else torch.kron(random_gram(n, 50), torch.eye(num_outputs, dtype=torch.float64))
    f = 3 * rows(n, num_outputs, seed=4)
    targets = torch.softmax(f, dim=1)

    def objective(flat: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        alpha = torch.tensor(flat, requires_grad=True)
        fitted = gram @ alpha
        log_p = torch.log_softmax(fitted.reshape(n, num_outputs), dim=1)
        value = -(targets * log_p).sum(dim=1).mean() + lam / 2 * (alpha @ fitted)
        (gradient,) = torch.autograd.grad(value, alpha)
        return float(value.detach()), gradient.numpy()

    direct = minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B", options={"maxiter": 20000, "ftol": 1e-16, "gtol": 1e-12})
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES["softmax"], f, lam=lam, tolerance=1e-10)
    # alpha is unique up to null(K); what it represents is unique.
    np.testing.assert_allclose((gram @ alpha.reshape(-1)).numpy(), gram.numpy() @ direct.x, rtol=0, atol=2e-5)
    assert certificate.objective <= direct.fun + 1e-12
    assert certificate.objective == pytest.approx(direct.fun, rel=1e-9)


@pytest.mark.parametrize(("name", "num_outputs"), [("squared", 2), ("logistic", 1), ("softmax", 3)])
def test_a_rank_deficient_gram_gives_the_alpha_of_proposition_8_itself(name: str, num_outputs: int) -> None:
    # Rank 5 of 40 rows: alpha has a component in null(K), which the objective cannot see and Eq. 6 fixes.
    n, lam = 40, 1e-2
    gram = torch.kron(random_gram(n, 5), torch.eye(num_outputs, dtype=torch.float64))
    f = 2 * rows(n, num_outputs, seed=4)
    loss = LOSSES[name]
    alpha, certificate = solve_surrogate(product_with(gram), loss, f, lam=lam, tolerance=1e-10)
    expected = proposition_8(gram, loss, f, alpha, lam)
    assert float((alpha - expected).norm() / alpha.norm()) <= 1e-10
    assert certificate.residual == pytest.approx(float((alpha - expected).norm() / alpha.norm()), rel=0.5, abs=1e-14)
    in_range = gram @ torch.linalg.pinv(gram, hermitian=True) @ alpha.reshape(-1)
    assert float((alpha.reshape(-1) - in_range).norm() / alpha.norm()) > 0.1


def test_proposition_9_a_null_vector_adds_nothing_to_the_surrogate_anywhere() -> None:
    features, elsewhere = rows(30, 5), rows(11, 5, seed=2)
    gram = features @ features.T
    alpha, _ = solve_surrogate(product_with(gram), LOSSES["logistic"], 2 * rows(30, 1, seed=4), lam=1e-2)
    null = torch.linalg.eigh(gram).eigenvectors[:, :25] @ rows(25, 1, seed=6)
    assert float((gram @ null).norm()) < 1e-10 < float(null.norm())
    torch.testing.assert_close(elsewhere @ features.T @ (alpha + null), elsewhere @ features.T @ alpha, rtol=0, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([("squared", 1), ("squared", 3), ("logistic", 1), ("softmax", 2), ("softmax", 4)]),
    st.integers(1, 12),
    st.integers(1, 20),
    st.floats(-4, 1),
    st.floats(-2, 2),
    st.integers(0, 10_000),
)
def test_every_answer_satisfies_proposition_8(
    case: tuple[str, int], n: int, width: int, log_lam: float, log_scale: float, seed: int
) -> None:
    name, num_outputs = case
    gram = 10**log_scale * random_gram(n * num_outputs, width, seed)
    f = 3 * rows(n, num_outputs, seed=seed + 1)
    lam = 10**log_lam
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES[name], f, lam=lam)
    expected = proposition_8(gram, LOSSES[name], f, alpha, lam)
    assert certificate.converged
    assert float((alpha - expected).norm()) <= 1.01e-6 * float(alpha.norm())


def digits_network(width: int) -> tuple[Tensor, Tensor]:
    """Gram (N, N) and outputs (N, 1) of a small CNN trained on 300 images of two digits."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, (3, 8))
    inputs = torch.tensor(images[chosen][:300] / 16).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels[chosen][:300] == 8)
    layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 1)]
    model = initialise(nn.Sequential(*layers), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        for start in range(0, 300, 50):
            optimizer.zero_grad()
            batch = slice(start, start + 50)
            torch.autograd.backward(LOSSES["logistic"].value(model_outputs(model, inputs[batch]), targets[batch]).mean())
            optimizer.step()
    features = per_sample_gradients(model, inputs)[:, 0]
    return features @ features.T, model_outputs(model, inputs).detach()


def test_few_products_with_the_gram_are_needed() -> None:
    gram, f = digits_network(4)
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-3)
    assert certificate.converged
    assert certificate.iterations <= 12
    assert certificate.matvecs < 80
    assert certificate.efficiency_gap == pytest.approx(float((f - gram @ alpha).abs().max()), rel=1e-9)


@pytest.mark.parametrize("lam", [1e-1, 1e-2, 1e-3, 1e-4])
def test_with_columns_of_the_gram_fewer_products_are_needed(lam: float) -> None:
    gram, f = digits_network(4)
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=lam, columns=columns_of(gram))
    assert certificate.converged
    assert certificate.matvecs < 40
    reference, without = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=lam)
    assert certificate.matvecs < without.matvecs
    torch.testing.assert_close(gram @ alpha, gram @ reference, rtol=0, atol=1e-5 * float((gram @ alpha).abs().max()))


@pytest.mark.parametrize("max_columns", [1, 7])
@pytest.mark.parametrize(("name", "num_outputs"), [("squared", 2), ("logistic", 1), ("softmax", 3)])
def test_the_number_of_columns_does_not_change_the_answer(
    monkeypatch: pytest.MonkeyPatch, max_columns: int, name: str, num_outputs: int
) -> None:
    monkeypatch.setattr("genrep_dist.core.solvers.nystrom.MAX_COLUMNS", max_columns)
    gram, f = random_gram(40 * num_outputs, 60), 3 * rows(40, num_outputs, seed=1)
    requested: list[int] = []

    def columns(chosen: Tensor) -> Tensor:
        requested.append(len(chosen))
        return gram[:, chosen]

    reference, _ = solve_surrogate(product_with(gram), LOSSES[name], f, lam=1e-3, tolerance=1e-9)
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES[name], f, lam=1e-3, tolerance=1e-9, columns=columns)
    assert certificate.converged
    torch.testing.assert_close(gram @ alpha.reshape(-1), gram @ reference.reshape(-1), rtol=0, atol=1e-6)
    assert len(requested) == 1
    assert 1 <= requested[0] <= max_columns


def test_columns_take_bounded_memory_and_are_chosen_where_the_loss_is_curved() -> None:
    for size in (1, 12_000, 52_000, 10**9):
        assert nystrom_bytes(size) <= max(2**27, 16 * size)
    root = torch.full((10_000, 1, 1), 1e-3, dtype=torch.float64)
    root[5_000:5_100] = 0.5
    found: list[Tensor] = []

    def identity(chosen: Tensor) -> Tensor:
        found.append(chosen)
        return nn.functional.one_hot(chosen, 10_000).T.double()

    system = DualSystem(lambda v: v, torch.Size((10_000, 1)), 1e-2, columns=identity)

    system.solve(root, rows(10_000, 1), 1e-3)
    inside = (found[0] >= 5_000) & (found[0] < 5_100)
    assert int(inside.sum()) >= 95
    assert int((~inside).sum()) >= len(found[0]) // 3


def test_columns_of_the_wrong_form_are_refused() -> None:
    gram, f = random_gram(20, 30), rows(20, 1)
    with pytest.raises(ProblemError, match="columns of the gram matrix has the wrong form"):
        solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-2, columns=lambda chosen: gram[chosen].float())
    with pytest.raises(NonFiniteError, match="columns of K"):
        solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-2, columns=lambda chosen: gram[:, chosen] / 0)


@pytest.mark.parametrize("lam", [1e-4, 1e3])
def test_a_start_that_is_worse_than_zero_is_not_taken(lam: float) -> None:
    # With lambda 1000 the surrogate is near zero and far from the model: the first step is then discarded, and the answer is the same.
    gram, f = random_gram(30, 40), 30 * rows(30, 1, seed=4)
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=lam)
    assert certificate.converged
    expected = proposition_8(gram, LOSSES["logistic"], f, alpha, lam)
    assert float((alpha - expected).norm()) <= 1.01e-6 * float(alpha.norm())


def test_matvecs_counts_every_product() -> None:
    gram = random_gram(30, 40)
    calls: list[int] = []

    def counted(vector: Tensor) -> Tensor:
        calls.append(1)
        return gram @ vector

    _, certificate = solve_surrogate(counted, LOSSES["logistic"], rows(30, 1), lam=1e-2)
    assert certificate.matvecs == len(calls) > 0
    calls.clear()
    _, certificate = solve_surrogate(counted, LOSSES["logistic"], rows(30, 1), lam=1e-2, columns=columns_of(gram))
    assert certificate.matvecs == len(calls) + 1


def test_earlier_products_precondition_later_systems() -> None:
    features = rows(200, 400) * torch.arange(1, 401) ** -0.7
    gram = features @ features.T
    root = torch.full((200, 1, 1), 0.5, dtype=torch.float64)
    right = rows(200, 1)
    system = DualSystem(product_with(gram), right.shape, 1e-4)
    system.solve(root, right, 1e-8)
    first = system.matvecs
    spread, k_spread = system.solve(root, right + 0.1 * rows(200, 1, seed=7), 1e-8)
    assert system.matvecs - first < first / 2
    # The answer does not depend on the preconditioner.
    dense = 1e-4 * torch.eye(200, dtype=torch.float64) + 0.25 * gram / 200
    exact = 0.5 * torch.linalg.solve(dense, right + 0.1 * rows(200, 1, seed=7))
    torch.testing.assert_close(spread, exact, rtol=0, atol=1e-3 * float(exact.abs().max()))
    torch.testing.assert_close(k_spread, gram @ spread, rtol=0, atol=1e-9 * float(exact.abs().max()))


def test_an_unconverged_alpha_is_refused_unless_allowed() -> None:
    gram, f = random_gram(50, 80), 4 * rows(50, 1, seed=4)
    with pytest.raises(ConvergenceError, match=r"within 1 iterations") as caught:
        solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-3, max_iterations=1)
    assert "residual" in caught.value.got
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-3, max_iterations=1, allow_unconverged=True)
    assert not certificate.converged
    assert certificate.iterations == 1
    assert certificate.residual > certificate.tolerance == 1e-6
    expected = proposition_8(gram, LOSSES["logistic"], f, alpha, 1e-3)
    assert certificate.residual == pytest.approx(float((alpha - expected).norm() / alpha.norm()), rel=1e-9)


def test_an_impossible_tolerance_ends_with_an_error_not_a_loop() -> None:
    gram, f = random_gram(30, 40), rows(30, 1, seed=4)
    with pytest.raises(ConvergenceError):
        solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=1e-3, tolerance=1e-30)


def test_an_indefinite_gram_is_reported() -> None:
    gram = -10 * random_gram(20, 40)
    with pytest.raises(ConvergenceError, match="not positive semi-definite"):
        solve_surrogate(product_with(gram), LOSSES["logistic"], rows(20, 1, seed=4), lam=1e-3)


def test_a_gram_that_is_negative_only_by_rounding_is_solved() -> None:
    gram = random_gram(20, 5) - 1e-9 * torch.eye(20, dtype=torch.float64)
    assert torch.linalg.eigvalsh(gram)[0] < 0
    _, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], rows(20, 1, seed=4), lam=1e-2)
    assert certificate.converged
    # A matrix of nothing but rounding is refused.
    with pytest.raises(ConvergenceError):
        solve_surrogate(lambda v: -1e-9 * v, LOSSES["logistic"], rows(20, 1, seed=4), lam=1e-2)


def test_a_lambda_far_below_the_gram_is_solved_or_refused_with_the_numbers() -> None:
    gram = 1e8 * random_gram(20, 5)
    f = rows(20, 1, seed=4)
    for lam in (1e-6, 1e-9, 1e-12):
        alpha, certificate = solve_surrogate(product_with(gram), LOSSES["logistic"], f, lam=lam, allow_unconverged=True)
        expected = proposition_8(gram, LOSSES["logistic"], f, alpha, lam)
        assert certificate.residual == pytest.approx(float((alpha - expected).norm() / alpha.norm()), rel=1e-3)
        assert certificate.converged == (certificate.residual <= 1e-6)


def test_a_small_lambda_loses_nothing_to_cancellation() -> None:
    # The Newton step is a difference of terms 1/lambda times larger than itself; squared loss on a model in the kernel's span is worst.
    features = rows(30, 6)
    f = features @ rows(6, 1, seed=3)
    gram = features @ features.T
    alpha, certificate = solve_surrogate(product_with(gram), SquaredLoss(), f, lam=1e-7, tolerance=1e-7)
    exact = torch.linalg.lstsq(features.T, rows(6, 1, seed=3), driver="gelsd").solution
    torch.testing.assert_close(gram @ alpha, gram @ exact, rtol=0, atol=1e-5)
    assert certificate.iterations <= 5


@pytest.mark.parametrize(("name", "num_outputs"), [("squared", 2), ("logistic", 1), ("softmax", 3)])
def test_a_model_that_is_zero_everywhere_has_alpha_zero(name: str, num_outputs: int) -> None:
    gram = random_gram(10 * num_outputs, 8)
    constant = 0.7 if name == "softmax" else 0.0
    f = torch.full((10, num_outputs), constant)
    alpha, certificate = solve_surrogate(product_with(gram), LOSSES[name], f, lam=1e-2)
    assert torch.equal(alpha, torch.zeros(10, num_outputs, dtype=torch.float64))
    assert certificate.converged
    assert (certificate.residual, certificate.iterations) == (0.0, 0)
    assert certificate.efficiency_gap == pytest.approx(constant)


def test_a_zero_kernel_leaves_the_derivative_at_zero() -> None:
    f = rows(6, 1)
    alpha, certificate = solve_surrogate(torch.zeros_like, LOSSES["logistic"], f, lam=0.1)
    torch.testing.assert_close(alpha, -(0.5 - torch.sigmoid(f)) / 0.6, rtol=1e-12, atol=0)
    assert certificate.converged


def test_a_tiny_model_is_not_treated_as_zero() -> None:
    gram, f = random_gram(8, 10), 1e-12 * rows(8, 1)
    alpha, certificate = solve_surrogate(product_with(gram), SquaredLoss(), f, lam=0.1)
    expected = torch.linalg.solve(gram + 0.8 * torch.eye(8, dtype=torch.float64), f)
    torch.testing.assert_close(alpha, expected, rtol=1e-4, atol=0)
    assert certificate.converged


def test_invalid_arguments_are_refused() -> None:
    product, f = product_with(random_gram(4, 5)), rows(4, 1)
    loss = SquaredLoss()
    for lam in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MethodError, match="surrogate lam"):
            solve_surrogate(product, loss, f, lam=lam)
    with pytest.raises(MethodError, match="surrogate tolerance"):
        solve_surrogate(product, loss, f, lam=1.0, tolerance=0.0)
    with pytest.raises(MethodError, match="surrogate max_iterations"):
        solve_surrogate(product, loss, f, lam=1.0, max_iterations=0)
    with pytest.raises(MethodError, match="surrogate outputs"):
        solve_surrogate(product, loss, f[:, 0], lam=1.0)
    with pytest.raises(ProblemError, match="wrong form"):
        solve_surrogate(lambda v: v.float(), loss, f, lam=1.0)


def test_nan_is_refused_with_its_rows() -> None:
    f = rows(5, 1)
    broken = f.clone()
    broken[3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"outputs hold NaN or Inf[\s\S]*\[3\]"):
        solve_surrogate(product_with(random_gram(5, 6)), SquaredLoss(), broken, lam=1.0)
    gram = random_gram(5, 6)
    gram[2] = torch.inf
    with pytest.raises(NonFiniteError, match=r"K alpha hold NaN or Inf[\s\S]*\[2\]"):
        solve_surrogate(product_with(gram), SquaredLoss(), f, lam=1.0)


def test_a_loss_that_is_not_convex_is_refused() -> None:
    class Concave(SquaredLoss):
        name = "concave"

        def second_derivative(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return -super().second_derivative(outputs, targets)

    with pytest.raises(ProblemError, match="not convex"):
        solve_surrogate(product_with(random_gram(10, 6)), Concave(), rows(5, 2), lam=1.0)
