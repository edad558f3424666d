"""Theorem 7 as properties, and methods outside the class told which axiom they break."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from genrep_dist.core.attribution import attribute, random_scores, tracincp
from genrep_dist.core.gradients.model import model_outputs, parameter_vector
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.kernels.blocks import ntk_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.surrogate import solve_surrogate
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.paper.axioms import (
    AxiomResult,
    check_axioms,
    continuity,
    efficiency,
    irreducibility,
    self_explanation,
    symmetric_cycle,
    symmetric_zero,
)
from tests.core.models import mlp, rows, seeded

LITERAL, NORMALISED = "irreducibility (literal)", "irreducibility (sign-normalised)"


def broken(findings: tuple[AxiomResult, ...]) -> set[str]:
    return {finding.axiom for finding in findings if not finding.passed}


def named(findings: tuple[AxiomResult, ...], axiom: str) -> AxiomResult:
    return next(finding for finding in findings if finding.axiom == axiom)


def ids_for(phi: Tensor) -> Tensor:
    return 100 + torch.arange(len(phi))


@st.composite
def mercer_explanations(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Alpha (N,) and K (N, N): any real alpha, zeros among them, and a PSD kernel of any rank with orthogonal pairs and dead samples."""
    n, width = draw(st.integers(1, 14)), draw(st.integers(1, 16))
    seed = draw(st.integers(0, 10_000))
    features = rows(n, width, seed=seed)
    if draw(st.booleans()):
        features = features * (rows(n, width, seed=seed + 1) > draw(st.floats(-1, 1)))
    spread = draw(st.floats(0, 1.5))
    features = features * (10 ** (spread * rows(n, 1, seed=seed + 2).clamp(-2, 2)))
    signs = draw(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=n, max_size=n))
    alpha = torch.tensor(signs, dtype=torch.float64) * 10 ** (draw(st.floats(0, 4)) * rows(n, seed=seed + 3).clamp(-2, 2))
    return alpha, features @ features.T


@settings(max_examples=150, deadline=None)
@given(mercer_explanations())
def test_theorem_7_every_alpha_times_a_mercer_kernel_passes(explanation: tuple[Tensor, Tensor]) -> None:
    alpha, kernel = explanation
    phi = alpha.unsqueeze(1) * kernel
    findings = check_axioms(phi, ids_for(phi))
    assert broken(findings) <= {LITERAL}
    # Taken literally, irreducibility breaks exactly where some phi(x_i -> x_i) is negative.
    assert named(findings, LITERAL).passed == bool((phi.diagonal() >= 0).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["inside", "cycle", "truncated", "random"]))
def test_verdicts_do_not_depend_on_positive_factors_of_rows_and_columns(seed: int, kind: str) -> None:
    features, alpha = rows(8, 12, seed=seed), rows(8, seed=seed + 1)
    phi = alpha.unsqueeze(1) * (features @ features.T)
    if kind == "cycle":
        phi = phi + rows(8, seed=seed + 2).unsqueeze(1) * features[:, :6] @ features[:, :6].T
    elif kind == "truncated":
        phi = phi * (phi.abs() >= phi.abs().topk(4, dim=1).values[:, -1:])
    elif kind == "random":
        phi = rows(8, 8, seed=seed)
    row, column = (2.0 ** torch.randint(-20, 20, (8,), generator=seeded(seed + k)) for k in (3, 4))
    scaled = phi * row.unsqueeze(1) * column.unsqueeze(0)
    assert broken(check_axioms(scaled, ids_for(phi))) == broken(check_axioms(phi, ids_for(phi)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 7), st.integers(0, 7))
def test_one_entry_off_by_a_percent_is_found(seed: int, i: int, j: int) -> None:
    features = rows(8, 20, seed=seed) + 2
    phi = rows(8, seed=seed + 1).unsqueeze(1) * (features @ features.T)
    phi[i, j] *= 1.01
    assert ("symmetric cycle" in broken(check_axioms(phi, ids_for(phi)))) == (i != j)


def test_float32_kernels_pass() -> None:
    features = rows(40, 30, dtype=torch.float32)
    phi = attribute(rows(40, 1), (features @ features.T).unsqueeze(1))
    assert broken(check_axioms(phi, ids_for(phi))) == {LITERAL}


class Trained:
    """A small network's explanations among its ten training samples."""

    def __init__(self, seed: int = 0) -> None:
        self.inputs, self.targets = rows(10, 4), torch.randint(2, (10,), generator=seeded(3))
        self.loss = LOSSES["logistic"]
        self.model = mlp(1, seed=seed, width=5)
        self.outputs = model_outputs(self.model, self.inputs).detach()
        self.features = per_sample_gradients(self.model, self.inputs)
        self.alpha = target_importance(self.loss, self.outputs, self.targets)
        self.kernel = ntk_block(self.features, self.features[:, 0])
        self.ids = 100 + torch.arange(10)


def test_ntk_explanations_pass_and_tracincp_over_one_checkpoint_is_one_of_them() -> None:
    t = Trained()
    single = tracincp([(0.3, t.alpha, t.kernel)])
    torch.testing.assert_close(single, 0.3 * attribute(t.alpha, t.kernel))
    assert broken(check_axioms(single, t.ids)) == {LITERAL}


def test_tracincp_over_two_checkpoints_breaks_the_symmetric_cycle() -> None:
    checkpoints = [Trained(seed) for seed in (0, 1)]
    phi = tracincp((0.3, t.alpha, t.kernel) for t in checkpoints)
    findings = check_axioms(phi, checkpoints[0].ids)
    assert "symmetric cycle" in broken(findings)
    example = named(findings, "symmetric cycle").counter_example
    assert example is not None
    # The counter-example stands on its own: both products, from the ids alone.
    cycle = [i - 100 for i in example.ids]
    following = cycle[1:] + cycle[:1]
    products = [math.prod(float(phi[a, b]) for a, b in zip(p, q, strict=True)) for p, q in ((cycle, following), (following, cycle))]
    assert products == pytest.approx(list(example.values), rel=1e-9)
    assert abs(products[0] - products[1]) > 1e-4 * max(map(abs, products))
    assert example.statement.startswith(f"the product along x_{example.ids[0]} -> ")


def test_influence_with_an_indefinite_hessian_breaks_irreducibility() -> None:
    t = Trained()
    names = [name for name, _ in t.model.named_parameters()]
    shapes = [p.shape for p in t.model.parameters()]

    def mean_loss(theta: Tensor) -> Tensor:
        parts = torch.split(theta, [shape.numel() for shape in shapes])
        parameters = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return t.loss.value(functional_call(t.model, parameters, (t.inputs,)), t.targets).mean()

    theta = parameter_vector(t.model).requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(theta), theta, create_graph=True)
    curvature = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient])
    spectrum = torch.linalg.eigvalsh(curvature + 1e-3 * torch.eye(len(curvature), dtype=torch.float64))
    assert spectrum[0] < -1e-3 < 1e-3 < spectrum[-1]
    flat = t.features[:, 0]
    kernel = flat @ torch.linalg.solve(curvature + 1e-3 * torch.eye(len(curvature), dtype=torch.float64), flat.T)
    findings = check_axioms(t.alpha * kernel, t.ids)
    assert NORMALISED in broken(findings)
    assert "symmetric cycle" not in broken(findings)
    example = named(findings, NORMALISED).counter_example
    assert example is not None
    minor = torch.tensor(example.ids) - 100
    block = (t.alpha * kernel)[minor][:, minor]
    determinant = float(torch.linalg.det(block) * torch.sign(block.diagonal()).prod())
    assert determinant == pytest.approx(example.values[0], rel=1e-6)
    assert determinant < 0


def test_influence_by_gauss_newton_is_inside_the_class() -> None:
    t = Trained()
    kernel = gauss_newton_kernel(t)
    assert broken(check_axioms(attribute(t.alpha, kernel), t.ids)) <= {LITERAL}


def gauss_newton_kernel(t: Trained) -> Tensor:
    curvature = t.loss.second_derivative(t.outputs, t.targets)
    return influence_kernel(t.kernel[:, 0], t.kernel, curvature, damping=0.01, relative=False, num_parameters=t.features.shape[2])[0]


def test_relatif_only_rescales_alpha() -> None:
    # RelatIF divides a sample's influence by |H^-1 dL_i/dtheta|, a training-side factor.
    t = Trained()
    flat, h = t.features[:, 0], t.loss.second_derivative(t.outputs, t.targets)[:, 0]
    damped = (flat * h).T @ flat / 10 + 0.01 * torch.eye(flat.shape[1], dtype=torch.float64)
    change = torch.linalg.solve(damped, (t.alpha * flat).T).T
    phi = change @ flat.T / change.norm(dim=1, keepdim=True)
    torch.testing.assert_close(phi, attribute(t.alpha, gauss_newton_kernel(t)) / change.norm(dim=1, keepdim=True))
    assert broken(check_axioms(phi, t.ids)) == {LITERAL}


def test_gradcos_is_the_sign_of_the_derivative_times_the_cosine_kernel() -> None:
    t = Trained()
    of_loss, of_output = t.alpha * t.features[:, 0], t.features[:, 0]
    phi = (of_loss / of_loss.norm(dim=1, keepdim=True)) @ (of_output / of_output.norm(dim=1, keepdim=True)).T
    size = t.kernel[:, 0].diagonal().sqrt()
    torch.testing.assert_close(phi, torch.sign(t.alpha) * t.kernel[:, 0] / size.unsqueeze(1) / size.unsqueeze(0))
    assert broken(check_axioms(phi, t.ids)) == {LITERAL}


def test_negative_distances_break_self_explanation() -> None:
    inputs = rows(9, 4)
    phi = -(inputs.unsqueeze(1) - inputs.unsqueeze(0)).norm(dim=2)
    findings = check_axioms(phi, 100 + torch.arange(9))
    assert {"self-explanation", NORMALISED} <= broken(findings)
    assert 1e-3 < named(findings, NORMALISED).worst <= 1
    example = named(findings, "self-explanation").counter_example
    assert example is not None
    i = example.ids[0] - 100
    assert example.values == (0.0, float(phi[i].min()))


def test_self_explanation_looks_at_test_points_too() -> None:
    phi = torch.diag(torch.tensor([1.0, 0.0, 2.0]))
    phi_test = torch.tensor([[1.0], [0.5], [0.0]])
    assert self_explanation(phi, torch.arange(3)).passed
    finding = self_explanation(phi, torch.arange(3), phi_test)
    assert not finding.passed
    assert finding.counter_example is not None
    assert finding.counter_example.ids == (1,)
    assert "test point 0" in finding.counter_example.statement


def test_random_scores_break_what_has_to_do_with_symmetry() -> None:
    phi = random_scores(range(12), 12)
    assert {"symmetric cycle", LITERAL, NORMALISED} <= broken(check_axioms(phi, ids_for(phi)))


def test_keeping_only_the_largest_of_each_row_breaks_the_symmetric_zero() -> None:
    features = rows(10, 6)
    phi = features @ features.T
    kept = phi.abs() >= phi.abs().topk(4, dim=1).values[:, -1:]
    assert symmetric_zero(phi, ids_for(phi)).passed
    finding = symmetric_zero(phi * kept, ids_for(phi))
    assert not finding.passed
    assert finding.counter_example is not None
    a, b = (i - 100 for i in finding.counter_example.ids)
    assert (phi * kept)[a, b] == 0 != (phi * kept)[b, a]
    assert finding.cases == 45


def test_symmetric_zero_does_not_speak_of_samples_without_self_explanation() -> None:
    phi = torch.tensor([[1.0, 0.5], [0.0, 0.0]])
    assert symmetric_zero(phi, torch.arange(2)).passed


def test_a_negative_direction_that_random_minors_miss_is_found() -> None:
    # Only the minor of exactly these six of sixty samples, and those that contain it, are negative.
    n, six = 60, [3, 11, 20, 37, 41, 58]
    direction = torch.zeros(n, dtype=torch.float64)
    direction[six] = 1
    kernel = torch.eye(n, dtype=torch.float64) - 0.2 * torch.outer(direction, direction)
    alpha = torch.where(torch.arange(n) % 2 == 0, -3.0, 0.5).double().unsqueeze(1)
    finding = irreducibility(alpha * kernel, torch.arange(n), literal=False)
    assert not finding.passed
    assert finding.counter_example is not None
    assert set(six) <= set(finding.counter_example.ids)
    assert irreducibility(alpha * (kernel + 0.21 * torch.eye(n)), torch.arange(n), literal=False).passed


def test_rounding_of_a_vanishing_minor_is_no_counter_example() -> None:
    # Rank 2, so that all larger minors are zero, with a diagonal far below the other entries; the minors of two are positive.
    a = rows(6, 2)
    turned = torch.stack([-a[:, 1], a[:, 0]], dim=1)
    phi = a @ (turned + 1e-9 * a).T
    assert irreducibility(phi, torch.arange(6), literal=True).passed


def test_irreducibility_beyond_the_exhaustive_sizes_still_finds_a_large_violation() -> None:
    n = 600
    features = rows(n, 5)
    assert irreducibility(features @ features.T, torch.arange(n), literal=True, samples=64).passed
    distances = -(features.unsqueeze(1) - features.unsqueeze(0)).norm(dim=2) + 0.1 * torch.eye(n)
    finding = irreducibility(distances, torch.arange(n), literal=False, samples=64)
    assert not finding.passed


def test_efficiency_reports_the_gap() -> None:
    phi = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    assert efficiency(phi, torch.tensor([4.0, 1.0])).passed
    finding = efficiency(phi, torch.tensor([4.0, 1.5]))
    assert not finding.passed
    assert finding.worst == pytest.approx(0.125)
    assert finding.counter_example is not None
    assert finding.counter_example.values == (1.0, 1.5)
    assert "test point 1" in finding.counter_example.statement


def test_a_model_in_the_kernels_span_is_explained_efficiently_as_lambda_falls() -> None:
    train, test = rows(30, 6), rows(5, 6, seed=2)
    theta = rows(6, 1, seed=3)
    gaps = []
    for lam in (1.0, 1e-3, 1e-7):
        alpha, _ = solve_surrogate(lambda v: train @ (train.T @ v), LOSSES["squared"], train @ theta, lam=lam, tolerance=1e-7)
        gaps.append(efficiency(attribute(alpha, (train @ test.T).unsqueeze(1)), (test @ theta)[:, 0]).worst)
    assert gaps[0] > 0.1 > gaps[1] > 1e-5 > gaps[2]


def gaussian(points: Tensor) -> Tensor:
    train = rows(6, 3, seed=5)
    return torch.exp(-(train.unsqueeze(1) - points.unsqueeze(0)).square().sum(dim=2))


def nearest_neighbour(points: Tensor) -> Tensor:
    distances = (rows(6, 3, seed=5).unsqueeze(1) - points.unsqueeze(0)).norm(dim=2)
    nearest: Tensor = (distances == distances.amin(dim=0)).double()
    return nearest


def test_continuity_holds_for_kernels_and_fails_for_nearest_neighbours() -> None:
    start, end, ids = rows(20, 3, seed=6), rows(20, 3, seed=7), 100 + torch.arange(6)
    assert continuity(gaussian, start, end, ids).passed
    finding = continuity(nearest_neighbour, start, end, ids)
    assert not finding.passed
    assert finding.worst == 1.0
    assert finding.counter_example is not None
    assert set(finding.counter_example.values) == {0.0, 1.0}


def test_continuity_holds_for_a_networks_explanations_and_a_root() -> None:
    t = Trained()
    index = torch.zeros(10, dtype=torch.int64)

    def explain(points: Tensor) -> Tensor:
        return attribute(t.alpha, ntk_block(t.features, per_sample_gradients(t.model, points, index[: len(points)])))

    assert continuity(explain, rows(10, 4, seed=6), rows(10, 4, seed=7), t.ids).passed
    assert continuity(lambda x: x[:, :1].T.abs().sqrt(), torch.tensor([[-1.0]]), torch.tensor([[1.0]]), torch.arange(1)).passed


def test_check_axioms_runs_what_it_is_given() -> None:
    t = Trained()
    phi = attribute(t.alpha, t.kernel)
    alone = check_axioms(phi, t.ids)
    assert [finding.axiom for finding in alone] == ["self-explanation", "symmetric zero", "symmetric cycle", LITERAL, NORMALISED]
    index = torch.zeros(10, dtype=torch.int64)

    def explain(points: Tensor) -> Tensor:
        return attribute(t.alpha, ntk_block(t.features, per_sample_gradients(t.model, points, index[: len(points)])))

    points = rows(4, 4, seed=8)
    everything = check_axioms(
        phi, t.ids, phi_test=explain(points), outputs=model_outputs(t.model, points).detach()[:, 0], explain=explain, points=points
    )
    assert [finding.axiom for finding in everything] == [
        "efficiency",
        "self-explanation",
        "symmetric zero",
        "symmetric cycle",
        "continuity",
        LITERAL,
        NORMALISED,
    ]
    assert broken(everything) == {"efficiency", LITERAL}
    assert all((finding.counter_example is None) == finding.passed for finding in everything)


def test_checks_are_deterministic() -> None:
    phi = random_scores(range(9), 9)
    assert check_axioms(phi, ids_for(phi), seed=4) == check_axioms(phi, ids_for(phi), seed=4)


def test_nothing_and_all_zeros_explain_themselves() -> None:
    zeros = torch.zeros(4, 4)
    assert broken(check_axioms(zeros, torch.arange(4))) == set()
    assert broken(check_axioms(torch.tensor([[2.0]]), torch.arange(1))) == set()


def test_material_that_does_not_fit_is_refused() -> None:
    phi, ids = rows(4, 4), torch.arange(4)
    for bad in (rows(4, 3), rows(4), rows(0, 0)):
        with pytest.raises(ProblemError, match="does not fit"):
            symmetric_cycle(bad, ids)
    with pytest.raises(ProblemError, match="does not fit"):
        symmetric_cycle(phi, ids[:2])
    with pytest.raises(ProblemError, match="does not fit"):
        efficiency(phi, rows(3))
    with pytest.raises(ProblemError, match="does not fit"):
        continuity(gaussian, rows(2, 3), rows(3, 3), torch.arange(6))
    with pytest.raises(ProblemError, match="does not fit"):
        continuity(gaussian, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), torch.arange(6))
    with pytest.raises(ProblemError, match="does not fit"):
        continuity(gaussian, rows(2, 3), rows(2, 3), torch.arange(5))


def test_nan_is_refused_with_its_ids() -> None:
    phi = rows(4, 4)
    phi[2, 1] = torch.nan
    for check in (symmetric_cycle, symmetric_zero, self_explanation):
        with pytest.raises(NonFiniteError, match=r"ids \[102\]"):
            check(phi, 100 + torch.arange(4))
    with pytest.raises(NonFiniteError, match="1 test points"):
        efficiency(phi, rows(4))
