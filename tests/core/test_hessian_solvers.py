"""Solvers for the true Hessian against explicit inverses, and their certificates of negative curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.conjugate_gradients import conjugate_gradients
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.hessian import hessian_product, influence_block
from genrep_dist.core.solvers.hessian_system import HessianCertificate, Matmat, declare_damping
from genrep_dist.core.solvers.lissa import lissa
from genrep_dist.errors import ConvergenceError, MethodError, NonFiniteError, ProblemError
from tests.core.models import NetworkExample, full_hessian, initialise, labels, mlp, rows

CASES = [("logistic", 1), ("softmax", 3), ("squared", 2)]


def as_product(matrix: Tensor) -> Matmat:
    return lambda vectors: matrix @ vectors


def spectrum(*eigenvalues: float, seed: int = 4) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors in columns."""
    basis = torch.linalg.qr(rows(len(eigenvalues), len(eigenvalues), seed=seed))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T, basis


class HessianExample(NetworkExample):
    """A network with its H (P, P), products with H, and the gradients of test points; ``convex`` is a damping that makes H positive."""

    def __init__(self, loss_name: str, num_outputs: int) -> None:
        super().__init__(loss_name, num_outputs)
        self.hessian = full_hessian(self.model, self.loss, self.train, self.targets)
        self.product = hessian_product(self.model, self.loss, self.train, self.targets, batch_size=16)
        self.right = self.test_gradient.T
        self.smallest = float(torch.linalg.eigvalsh(self.hessian)[0])
        self.convex = 0.05 - self.smallest

    def damped(self, delta: float) -> Tensor:
        return self.hessian + delta * torch.eye(len(self.hessian), dtype=torch.float64)


Solver = Callable[..., tuple[Tensor, HessianCertificate]]


@pytest.mark.parametrize("solver", [conjugate_gradients, lissa])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_the_influence_kernel_agrees_with_the_explicit_inverse(loss_name: str, num_outputs: int, solver: Solver) -> None:
    m = HessianExample(loss_name, num_outputs)
    # LiSSA takes thousands of steps here, so it uses the matrix.
    product = m.product if solver is conjugate_gradients else as_product(m.hessian)
    solution, _ = solver(product, m.right, damping=m.convex, tolerance=1e-10)
    expected = torch.linalg.inv(m.damped(m.convex)) @ m.right
    torch.testing.assert_close(solution, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))
    jacobian = per_sample_gradients(m.model, m.train)
    kernel = torch.einsum("bcp,pm->bcm", jacobian, expected)
    found = influence_block(jacobian, solution)
    torch.testing.assert_close(found, kernel, rtol=0, atol=1e-8 * float(kernel.abs().max()))


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_on_a_linear_model_it_is_the_gauss_newton_kernel(loss_name: str, num_outputs: int) -> None:
    model = initialise(nn.Sequential(nn.Linear(4, num_outputs)), 6)
    loss, train, test, targets = LOSSES[loss_name], rows(10, 4), rows(3, 4, seed=2), labels(loss_name, num_outputs, 10)
    jacobian, gradient = per_sample_gradients(model, train), per_sample_gradients(model, test, torch.zeros(3, dtype=torch.int64))
    flat = jacobian.flatten(0, 1)
    curvature = loss.second_derivative(model_outputs(model, train).detach(), targets)
    expected, _ = influence_kernel(
        flat @ flat.T, ntk_block(jacobian, gradient), curvature, damping=0.01, relative=False, num_parameters=flat.shape[1]
    )
    product = hessian_product(model, loss, train, targets, batch_size=64)
    solution, certificate = conjugate_gradients(product, gradient.T, damping=0.01, tolerance=1e-12)
    found = influence_block(jacobian, solution)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    assert certificate.smallest_rayleigh is not None
    assert certificate.smallest_rayleigh > -1e-12


@pytest.mark.parametrize("solver", [conjugate_gradients, lissa])
def test_the_certificate_is_the_residual_of_each_column(solver: Solver) -> None:
    m = HessianExample("softmax", 3)
    limit = {"max_iterations": 3} if solver is conjugate_gradients else {"depth": 10}
    solution, certificate = solver(m.product, m.right, damping=m.convex, allow_unconverged=True, **limit)
    values = asdict(certificate)
    residuals = (m.right - m.damped(m.convex) @ solution).norm(dim=0) / m.right.norm(dim=0)
    torch.testing.assert_close(torch.tensor(values["residuals"], dtype=torch.float64), residuals, rtol=1e-9, atol=0)
    assert values["residual"] == max(values["residuals"]) > 1e-6
    assert (values["converged"], values["negative_curvature"], values["damping"]) == (False, 0, m.convex)
    assert values["iterations"] == next(iter(limit.values()))


def test_converged_columns_leave_the_products() -> None:
    matrix, basis = spectrum(1.0, 2.0, 3.0, 5.0, 8.0, 13.0)
    right = torch.stack([basis[:, 2], basis.sum(dim=1)], dim=1)
    widths: list[int] = []

    def product(vectors: Tensor) -> Tensor:
        widths.append(vectors.shape[1])
        return matrix @ vectors

    solution, certificate = conjugate_gradients(product, right, damping=0.0, tolerance=1e-10)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, right))
    # An eigenvector is solved in one step, six eigenvalues in six; the last product is the certificate's.
    assert widths == [2, 1, 1, 1, 1, 1, 2]
    assert (certificate.iterations, certificate.products) == (6, 9)


@pytest.mark.parametrize("solver", [conjugate_gradients, lissa])
def test_zero_columns_and_no_columns(solver: Solver) -> None:
    matrix, _ = spectrum(1.0, 2.0, 3.0)
    right = rows(3, 2)
    right[:, 0] = 0
    solution, certificate = solver(as_product(matrix), right, damping=0.5)
    values = asdict(certificate)
    assert solution[:, 0].abs().max() == 0
    assert values["residuals"][0] == 0
    assert values["converged"]
    solution, certificate = solver(as_product(matrix), right[:, :0], damping=0.5)
    values = asdict(certificate)
    assert (solution.shape, values["residual"], values["residuals"], values["converged"]) == ((3, 0), 0.0, [], True)


def test_the_true_residual_decides_and_not_that_of_the_recursion() -> None:
    matrix, _ = spectrum(1.0, 2.0, 3.0, 5.0, 8.0, 13.0)
    disturbed = matrix + 1e-4 * torch.diag(rows(6, seed=9))
    calls = 0

    def product(vectors: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (disturbed if calls <= 6 else matrix) @ vectors

    right = rows(6, 3)
    solution, certificate = conjugate_gradients(product, right, damping=0.0, tolerance=1e-9)
    # The recursion is done after six steps, with an answer that is wrong in its fifth digit.
    assert certificate.iterations > 6
    assert certificate.residual <= 1e-9
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, right), rtol=1e-7, atol=1e-7)


def test_what_does_not_converge_is_refused() -> None:
    matrix, _ = spectrum(*[1.1**k for k in range(40)])
    right = rows(40, 3)
    with pytest.raises(ConvergenceError, match=r"3 of 3 columns above it.*\n.*max_iterations"):
        conjugate_gradients(as_product(matrix), right, damping=0.0, max_iterations=4)
    with pytest.raises(ConvergenceError, match=r"3 of 3 columns above it.*\n.*depth"):
        lissa(as_product(matrix), right, damping=0.0, depth=4)
    # Below the precision of float64 no number of steps helps, and the solver stops.
    _, certificate = conjugate_gradients(
        as_product(matrix), right, damping=0.0, tolerance=1e-30, max_iterations=500, allow_unconverged=True
    )
    assert not certificate.converged
    assert certificate.residual < 1e-13
    assert certificate.iterations < 500


# -- LiSSA -----------------------------------------------------------------------------------------------------------------------


def plain_lissa(matrix: Tensor, right: Tensor, scale: float, depth: int) -> Tensor:
    """The recursion as published, one vector after the other."""
    columns = []
    for vector in right.T:
        estimate = vector
        for _ in range(depth - 1):
            estimate = vector + estimate - matrix @ estimate / scale
        columns.append(estimate / scale)
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("scale", [1.0, 4.0, 30.0])
@pytest.mark.parametrize("depth", [1, 2, 17])
def test_lissa_is_the_recursion_divided_by_its_scale(scale: float, depth: int) -> None:
    matrix, _ = spectrum(0.1, 0.3, 0.7, 1.2)
    right = rows(4, 3)
    damped = matrix + 0.05 * torch.eye(4, dtype=torch.float64)
    solution, certificate = lissa(as_product(matrix), right, damping=0.05, scale=scale, depth=depth, allow_unconverged=True)
    torch.testing.assert_close(solution, plain_lissa(damped, right, scale, depth), rtol=1e-12, atol=1e-14)
    assert (certificate.scale, certificate.iterations) == (scale, depth)


@pytest.mark.parametrize("scale", [0.8, 1.0, 3.0, None])
def test_lissa_does_not_depend_on_its_scale_once_converged(scale: float | None) -> None:
    # Without the division by scale the answers would be scale times too large.
    matrix, _ = spectrum(0.1, 0.3, 0.7, 1.2)
    right = rows(4, 3)
    solution, certificate = lissa(as_product(matrix), right, damping=0.05, scale=scale, tolerance=1e-10)
    expected = torch.linalg.solve(matrix + 0.05 * torch.eye(4, dtype=torch.float64), right)
    torch.testing.assert_close(solution, expected, rtol=1e-8, atol=1e-8)
    if scale is None:
        assert certificate.scale == pytest.approx(1.1 * 1.25, rel=0.01)


def test_lissa_is_deterministic() -> None:
    m = HessianExample("softmax", 3)
    first, second = (lissa(m.product, m.right, damping=m.convex, seed=5, depth=9, allow_unconverged=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize("allow_unconverged", [False, True])
@pytest.mark.parametrize("scale", [0.1, 0.6, 0.62])
def test_divergence_is_refused_and_the_error_names_a_scale_that_works(scale: float, allow_unconverged: bool) -> None:
    matrix, _ = spectrum(0.1, 0.3, 0.7, 1.2)
    right = rows(4, 3)
    with pytest.raises(ConvergenceError, match="diverges") as caught:
        lissa(as_product(matrix), right, damping=0.05, scale=scale, allow_unconverged=allow_unconverged)
    assert f"scale {scale}" in caught.value.got
    named = float(caught.value.remedy.split("scale=")[1].split(",")[0])
    assert named == pytest.approx(1.1 * 1.25, rel=0.01)
    assert lissa(as_product(matrix), right, damping=0.05, scale=named)[1].converged


# -- negative curvature --------------------------------------------------------------------------------------------------------------


def test_conjugate_gradients_report_the_negative_curvature_of_an_untrained_network() -> None:
    m = HessianExample("softmax", 3)
    damping = 0.1 * -m.smallest
    with pytest.raises(ConvergenceError, match="negative curvature in 5 columns") as caught:
        conjugate_gradients(m.product, m.right, damping=damping)
    assert "raise the damping" in caught.value.remedy
    solution, certificate = conjugate_gradients(m.product, m.right, damping=damping, allow_unconverged=True)
    assert certificate.negative_curvature == 5
    assert not certificate.converged
    assert torch.isfinite(solution).all()
    assert certificate.smallest_rayleigh is not None
    assert m.smallest - 1e-12 < certificate.smallest_rayleigh < -damping


def test_negative_curvature_that_the_damping_hides_is_reported() -> None:
    m = HessianExample("softmax", 3)
    _, certificate = conjugate_gradients(m.product, m.right, damping=m.convex, tolerance=1e-10)
    assert certificate.converged
    assert certificate.negative_curvature == 0
    # The system is positive definite, but H is not, and the extremes of its spectrum were seen.
    assert certificate.smallest_rayleigh == pytest.approx(m.smallest, rel=1e-6)
    assert certificate.largest_rayleigh == pytest.approx(float(torch.linalg.eigvalsh(m.hessian)[-1]), rel=1e-6)


def test_only_columns_that_meet_negative_curvature_are_stopped() -> None:
    matrix, basis = spectrum(-0.5, 1.0, 2.0, 4.0)
    right = torch.stack([basis[:, 0], basis[:, 1:].sum(dim=1), basis.sum(dim=1)], dim=1)
    solution, certificate = conjugate_gradients(as_product(matrix), right, damping=0.25, allow_unconverged=True)
    assert certificate.negative_curvature == 2
    assert [residual <= 1e-6 for residual in certificate.residuals] == [False, True, False]
    assert solution[:, 0].abs().max() == 0  # its first direction is the one of negative curvature, so it stays at zero
    expected = torch.linalg.solve(matrix + 0.25 * torch.eye(4, dtype=torch.float64), right[:, 1])
    torch.testing.assert_close(solution[:, 1], expected, rtol=1e-6, atol=1e-6)
    assert certificate.smallest_rayleigh == pytest.approx(-0.5, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(-1.0, 1.0), st.integers(2, 9))
def test_rayleigh_quotients_are_within_the_spectrum_and_reach_its_ends(seed: int, lowest: float, size: int) -> None:
    # A random right side has a component along every eigenvector, and the eigenvalues are distinct, so the Krylov space is everything.
    values = [lowest, *(float(k) for k in range(2, size + 1))]
    matrix, _ = spectrum(*values, seed=seed)
    damping = 0.5 - min(lowest, 0.0)
    _, certificate = conjugate_gradients(as_product(matrix), rows(size, 1, seed=seed + 1), damping=damping, tolerance=1e-13)
    assert certificate.smallest_rayleigh == pytest.approx(min(values), abs=1e-5)
    assert certificate.largest_rayleigh == pytest.approx(max(values), abs=1e-5)


@pytest.mark.parametrize(
    ("matrix", "scale"),
    [
        (spectrum(-0.75, 0.75, 1.75, 3.75)[0], 5.0),
        (spectrum(-0.75, 0.75, 1.75, 3.75)[0], None),
        # Here a term grows while its quotient is still positive.
        (torch.diag(torch.tensor([-0.4, 1.7], dtype=torch.float64)), 1.0),
    ],
)
def test_lissa_reports_negative_curvature_instead_of_a_small_scale(matrix: Tensor, scale: float | None) -> None:
    lowest = float(torch.linalg.eigvalsh(matrix)[0])
    right = torch.ones(len(matrix), 1, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="negative curvature in 1 columns"):
        lissa(as_product(matrix), right, damping=0.0, scale=scale)
    solution, certificate = lissa(as_product(matrix), right, damping=0.0, scale=scale, allow_unconverged=True)
    assert (certificate.negative_curvature, certificate.converged) == (1, False)
    assert certificate.smallest_rayleigh is not None
    assert lowest - 1e-9 < certificate.smallest_rayleigh <= 0
    assert torch.isfinite(solution).all()


def test_lissa_stops_only_the_columns_that_meet_negative_curvature() -> None:
    matrix, basis = spectrum(-0.5, 1.0, 2.0, 4.0)
    right = torch.stack([basis[:, 1:].sum(dim=1), basis.sum(dim=1)], dim=1)
    solution, certificate = lissa(as_product(matrix), right, damping=0.25, scale=5.0, allow_unconverged=True)
    assert certificate.negative_curvature == 1
    assert [residual <= 1e-6 for residual in certificate.residuals] == [True, False]
    expected = torch.linalg.solve(matrix + 0.25 * torch.eye(4, dtype=torch.float64), right[:, 0])
    torch.testing.assert_close(solution[:, 0], expected, rtol=1e-5, atol=1e-5)


# -- damping ---------------------------------------------------------------------------------------------------------------------------


def test_relative_damping_is_in_units_of_the_mean_eigenvalue() -> None:
    m = HessianExample("logistic", 1)
    mean = float(torch.linalg.eigvalsh(m.hessian).mean())
    found = declare_damping(m.product, len(m.hessian), damping=0.3, relative=True, seed=1)
    assert found.mean_eigenvalue == pytest.approx(mean, rel=1e-10)
    assert found.delta == pytest.approx(0.3 * mean, rel=1e-10)
    assert (found.standard_error, found.probes) == (0.0, 0)
    absolute = declare_damping(m.product, len(m.hessian), damping=0.3, relative=False, seed=1)
    assert asdict(absolute) == {"delta": 0.3, "mean_eigenvalue": None, "standard_error": None, "probes": 0}


def test_the_estimated_trace_is_as_good_as_it_says() -> None:
    # The identity is added for the trace to be positive; it is estimated without error.
    matrix = HessianExample("softmax", 3).damped(1.0)
    size, mean = len(matrix), float(torch.linalg.eigvalsh(matrix).mean())
    estimates = [declare_damping(as_product(matrix), size, damping=1.0, relative=True, seed=seed, probes=20) for seed in range(60)]
    assert estimates[0] == declare_damping(as_product(matrix), size, damping=1.0, relative=True, seed=0, probes=20)
    assert {estimate.probes for estimate in estimates} == {20}
    errors = torch.tensor([((e.mean_eigenvalue or 0.0) - mean) / (e.standard_error or 0.0) for e in estimates])
    # Deviations in units of the declared standard error, compared with a normal distribution.
    assert 0.5 < float((errors.abs() < 1).float().mean()) < 0.85
    assert float((errors.abs() < 2).float().mean()) > 0.85
    assert float(errors.std()) == pytest.approx(1.0, abs=0.35)


def test_a_relative_damping_needs_a_positive_trace() -> None:
    matrix, _ = spectrum(-3.0, 1.0, 1.5)
    with pytest.raises(MethodError, match="positive mean eigenvalue"):
        declare_damping(as_product(matrix), 3, damping=0.1, relative=True, seed=0)
    with pytest.raises(MethodError, match="from 2 probes"):
        declare_damping(as_product(-torch.eye(3, dtype=torch.float64)), 3, damping=0.1, relative=True, seed=0, probes=2)
    for damping in (-1.0, math.nan, math.inf):
        with pytest.raises(MethodError, match="damping"):
            declare_damping(as_product(matrix), 3, damping=damping, relative=False, seed=0)


# -- refusals ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [conjugate_gradients, lissa])
def test_invalid_systems_are_refused(solver: Solver) -> None:
    matrix, _ = spectrum(1.0, 2.0, 3.0)
    right = rows(3, 2)
    for options in ({"damping": -0.1}, {"damping": math.nan}, {"damping": 0.1, "tolerance": 0.0}):
        with pytest.raises(MethodError):
            solver(as_product(matrix), right, **options)
    with pytest.raises(ProblemError, match="wrong form"):
        solver(as_product(matrix), right[:, 0], damping=0.1)
    with pytest.raises(ProblemError, match="wrong form"):
        solver(lambda vectors: (matrix @ vectors).float(), right, damping=0.1)
    with pytest.raises(NonFiniteError, match="right-hand sides"):
        solver(as_product(matrix), right * math.inf, damping=0.1)
    with pytest.raises(NonFiniteError, match="product with the Hessian"):
        solver(as_product(matrix * math.nan), right, damping=0.1)


def test_limits_of_the_solvers_are_checked() -> None:
    matrix, _ = spectrum(1.0, 2.0)
    with pytest.raises(MethodError, match="max_iterations"):
        conjugate_gradients(as_product(matrix), rows(2, 1), damping=0.1, max_iterations=0)
    with pytest.raises(MethodError, match="depth"):
        lissa(as_product(matrix), rows(2, 1), damping=0.1, depth=0)
    for scale in (0.0, -1.0, math.nan):
        with pytest.raises(MethodError, match="scale"):
            lissa(as_product(matrix), rows(2, 1), damping=0.1, scale=scale)
    with pytest.raises(MethodError, match="not zero"):
        lissa(as_product(0 * matrix), rows(2, 1), damping=0.0)


def test_gradients_of_a_trained_network_are_solved_in_few_steps() -> None:
    model, inputs = mlp(1, seed=2), rows(30, 4)
    targets = (inputs[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(300):
        optimizer.zero_grad()
        functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], targets.double()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    product = hessian_product(model, LOSSES["logistic"], inputs, targets, batch_size=64)
    right = per_sample_gradients(model, rows(5, 4, seed=2), torch.zeros(5, dtype=torch.int64)).T
    _, certificate = conjugate_gradients(product, right, damping=0.05, max_iterations=30)
    assert certificate.converged
    assert certificate.residual <= 1e-6
