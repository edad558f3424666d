"""The primal influence system against explicit inverses and against the dual one; blocks, zeros, refinement, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.kernels.blocks import last_layer_block
from genrep_dist.core.losses import LOSSES
from genrep_dist.core.self_influence import influence_diagonal
from genrep_dist.core.solvers import primal_system
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.primal_sizes import block_rows, system_bytes
from genrep_dist.core.solvers.primal_system import FeatureBlocks, PrimalSystem, cholesky_in_place
from genrep_dist.errors import ConvergenceError, MethodError, ProblemError
from tests.core.models import NetworkExample, initialise, rows, seeded

CASES = [("logistic", 1), ("softmax", 3), ("squared", 2)]


def in_blocks(features: Tensor, size: int) -> FeatureBlocks:
    return lambda: (features[start : start + size] for start in range(0, len(features), size))


def solved(m: NetworkExample, damping: float, size: int = 5, *, relative: bool = False) -> PrimalSystem:
    blocks = in_blocks(m.jacobian, size)
    width = m.jacobian.shape[2]
    return PrimalSystem(blocks, m.curvature, width, damping=damping, relative=relative, num_parameters=m.num_parameters)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def test_the_rows_that_count_are_those_of_the_best_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refinement that makes it worse is handed over, and then the best solution again."""
    m = NetworkExample("softmax", 3)
    expected, _ = solved(m, 1e-2).kernel(m.test_gradient.T)
    system = solved(m, 1e-2)
    exact, calls = system.solve, []

    def worse(right: Tensor) -> Tensor:
        calls.append(1)
        return exact(right) * (1 + 1e-10) if len(calls) == 1 else torch.full_like(right, 1e3)

    monkeypatch.setattr(system, "solve", worse)
    handed: list[tuple[int, Tensor]] = []
    certificate = system.write_kernel(m.test_gradient.T, lambda start, rows: handed.append((start, rows)))
    starts = [start for start, _ in handed]
    assert starts.count(0) == 3
    last = len(starts) // 3
    assert starts[-last:] == list(range(0, len(m.jacobian), 5))
    close(torch.cat([rows for _, rows in handed[-last:]]), expected)
    assert certificate.residual < 1e-9


@pytest.mark.parametrize("damping", [1e-4, 10.0])
@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_it_agrees_with_the_explicit_inverse_and_with_the_dual_system(loss_name: str, num_outputs: int, damping: float) -> None:
    m = NetworkExample(loss_name, num_outputs)
    kernel, certificate = solved(m, damping).kernel(m.test_gradient.T)
    close(kernel, torch.einsum("ncp,mp->ncm", m.jacobian, torch.linalg.solve(m.gauss_newton(damping), m.test_gradient.T).T))
    dual, other = influence_kernel(m.gram, m.cross, m.curvature, damping=damping, relative=False, num_parameters=m.num_parameters)
    close(kernel, dual)
    assert certificate.damping == damping
    assert certificate.residual < 1e-10
    assert certificate.mean_eigenvalue == pytest.approx(other.mean_eigenvalue)


@pytest.mark.parametrize(("loss_name", "num_outputs"), CASES)
def test_the_diagonal_and_relative_damping_are_those_of_the_dual_system(loss_name: str, num_outputs: int) -> None:
    m = NetworkExample(loss_name, num_outputs)
    own, system = torch.arange(len(m.jacobian)) % num_outputs, solved(m, 0.1, relative=True)
    expected = influence_diagonal(m.gram, m.curvature, own, damping=0.1, relative=True, num_parameters=m.num_parameters)
    close(system.diagonal(own), expected)
    close(system.own_features(own), m.jacobian[torch.arange(len(own)), own])
    assert system.damping == pytest.approx(0.1 * float(torch.linalg.eigvalsh(m.gauss_newton()).mean()))


@lru_cache(maxsize=1)
def regression() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A logistic regression with 10 classes: features (N, L), Jacobians (N, C, C L), curvature, test features and their outputs."""
    num_train, num_outputs, width = 60, 10, 9
    layer = initialise(nn.Linear(width - 1, num_outputs), 3)
    inputs, test = rows(num_train, width - 1), rows(7, width - 1, seed=2)
    with torch.no_grad():
        curvature = LOSSES["softmax"].second_derivative(layer(inputs), torch.zeros(num_train, dtype=torch.int64))
    features, points = (torch.cat([x, torch.ones(len(x), 1).double()], 1) for x in (inputs, test))
    jacobian = torch.stack([torch.kron(torch.eye(num_outputs).double(), x[None]) for x in features])
    return features, jacobian, curvature, points, torch.arange(7) % num_outputs


@pytest.mark.parametrize("damping", [1e-5, 1e-2])
def test_ten_classes_by_shared_features_by_whole_ones_by_the_dual_system_and_by_the_inverse(
    damping: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Panels that hold parameters of one output, of two, and a part of one.
    monkeypatch.setattr(primal_system, "PANEL", 4)
    features, jacobian, curvature, points, outputs = regression()
    num_train, num_outputs, size = jacobian.shape
    test = torch.stack([torch.kron(torch.eye(num_outputs).double()[c], x) for x, c in zip(points, outputs, strict=True)])
    hessian = torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / num_train
    inverse = torch.linalg.inv(hessian + damping * torch.eye(size).double())
    expected = torch.einsum("ncp,pq,mq->ncm", jacobian, inverse, test)
    gram, cross = jacobian.flatten(0, 1) @ jacobian.flatten(0, 1).T, last_layer_block(features, points, outputs, num_outputs)
    dual, _ = influence_kernel(gram, cross, curvature, damping=damping, relative=False, num_parameters=size)
    close(dual, expected, 1e-8)
    own = torch.arange(num_train) % num_outputs
    diagonal = torch.einsum("ncp,pq,nq->nc", jacobian, inverse, jacobian[torch.arange(num_train), own])
    for blocks in (in_blocks(features, 25), in_blocks(jacobian, 60), in_blocks(jacobian, 7)):
        system = PrimalSystem(blocks, curvature, size, damping=damping, relative=False, num_parameters=size)
        kernel, certificate = system.kernel(test.T)
        close(kernel, expected, 1e-8)
        close(kernel, dual, 1e-8)
        close(system.diagonal(own), diagonal, 1e-8)
        close(system.own_features(own), jacobian[torch.arange(num_train), own])
        assert 0 < certificate.residual < 1e-10


def test_float32_features_are_summed_in_float64() -> None:
    m = NetworkExample("softmax", 3)
    jacobian = m.jacobian.float()
    kernel, _ = PrimalSystem(
        in_blocks(jacobian, 5), m.curvature, jacobian.shape[2], damping=1e-3, relative=False, num_parameters=m.num_parameters
    ).kernel(m.test_gradient.T)
    exact = jacobian.double()
    hessian = torch.einsum("ncp,ncd,ndq->pq", exact, m.curvature, exact) / len(exact) + 1e-3 * torch.eye(exact.shape[2]).double()
    close(kernel, torch.einsum("ncp,pm->ncm", exact, torch.linalg.solve(hessian, m.test_gradient.T)))


def test_an_inaccurate_factor_is_refined_with_new_products(monkeypatch: pytest.MonkeyPatch) -> None:
    m = NetworkExample("softmax", 3)
    system, passes = solved(m, 1e-2), []
    exact, multiply = system.solve, system._multiply
    monkeypatch.setattr(system, "solve", lambda right: exact(right) * (1 + 1e-5))

    def counted(vectors: Tensor, write: Callable[[int, Tensor], None]) -> Tensor:
        passes.append(1)
        return multiply(vectors, write)

    monkeypatch.setattr(system, "_multiply", counted)
    kernel, certificate = system.kernel(m.test_gradient.T)
    assert len(passes) == 3
    assert certificate.residual < 1e-12
    close(kernel, torch.einsum("ncp,mp->ncm", m.jacobian, torch.linalg.solve(m.gauss_newton(1e-2), m.test_gradient.T).T))
    # The certificate is that of the kernel: H is multiplied again, whatever the factor is.
    monkeypatch.setattr(system, "solve", lambda right: exact(right) * 1.7)
    with pytest.raises(ConvergenceError, match=r"residual <= 1e-08[\s\S]*residual 0\.24"):
        system.kernel(m.test_gradient.T)


def test_zero_columns_and_no_points() -> None:
    m = NetworkExample("logistic", 1)
    right = m.test_gradient.T.clone()
    right[:, 2] = 0
    kernel, certificate = solved(m, 0.1).kernel(right)
    assert kernel[:, :, 2].abs().max() == 0
    assert certificate.residual < 1e-10
    empty, certificate = solved(m, 0.1).kernel(right[:, :0])
    assert (empty.shape, certificate.residual) == ((12, 1, 0), 0.0)


def test_the_unsolvable_and_the_misfitting_are_refused() -> None:
    m = NetworkExample("logistic", 1)
    width = m.jacobian.shape[2]

    def attempt(blocks: FeatureBlocks, curvature: Tensor, size: int = width, damping: float = 0.1, *, relative: bool = False) -> None:
        PrimalSystem(blocks, curvature, size, damping=damping, relative=relative, num_parameters=width)

    whole = in_blocks(m.jacobian, 5)
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(MethodError, match="positive damping"):
            attempt(whole, m.curvature, damping=damping)
    with pytest.raises(MethodError, match="zero everywhere"):
        attempt(whole, 0 * m.curvature, relative=True)
    with pytest.raises(ProblemError, match="not convex"):
        attempt(whole, -m.curvature)
    for blocks, curvature, size in (
        (in_blocks(m.jacobian[:-1], 5), m.curvature, width),
        (in_blocks(m.jacobian, 5), m.curvature[:-1], width),
        (in_blocks(m.jacobian[:, :, 1:], 5), m.curvature, width),
        (in_blocks(m.jacobian, 5), m.curvature[:, :, 0], width),
        (in_blocks(m.jacobian, 5), m.curvature, 0),
    ):
        with pytest.raises(ProblemError, match="do not fit"):
            attempt(blocks, curvature, size)
    with pytest.raises(ProblemError, match="do not fit"):
        solved(m, 0.1).kernel(m.test_gradient)


@pytest.mark.parametrize("panel", [1, 5, 7, 64])
def test_the_factor_is_that_of_the_lower_triangle(panel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primal_system, "PANEL", panel)
    root = torch.randn(20, 30, generator=seeded(1), dtype=torch.float64)
    matrix = root @ root.T
    factor = matrix.tril() + torch.full_like(matrix, torch.nan).triu(1)
    assert cholesky_in_place(factor) is None
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(matrix), rtol=1e-10, atol=1e-10)
    matrix[13, 13] = -1
    assert cholesky_in_place(matrix) == 13


def test_blocks_have_bounded_numbers() -> None:
    for num_train, num_outputs, width in ((50_000, 1, 21), (5000, 10, 7850), (200, 1, 3), (1000, 1000, 10**6)):
        count = block_rows(num_train, num_outputs, width)
        assert 1 <= count <= num_train
        assert count == 1 or count * num_outputs * width <= max(2**20, width**2 / 8)
    assert system_bytes(5000, 10, 7850) < 2**30


def test_features_pass_by_once_for_the_matrix_and_once_for_the_kernel() -> None:
    m, passes = NetworkExample("softmax", 3), []

    def blocks() -> Iterator[Tensor]:
        passes.append(1)
        return iter(in_blocks(m.jacobian, 5)())

    system = PrimalSystem(blocks, m.curvature, m.jacobian.shape[2], damping=1e-2, relative=False, num_parameters=m.num_parameters)
    system.kernel(m.test_gradient.T)
    assert len(passes) == 2
