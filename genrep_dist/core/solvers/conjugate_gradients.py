"""Conjugate gradients for an indefinite H: all columns together, with the extremes of the spectrum that they have seen."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.core.solvers.hessian_system import DampedOperator, HessianCertificate, Matmat, certify, checked_right_side


def conjugate_gradients(
    product: Matmat,
    right: Tensor,
    *,
    damping: float,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    allow_unconverged: bool = False,
) -> tuple[Tensor, HessianCertificate]:
    """X (P, M) float64 with (H + ``damping`` I) X = ``right`` (P, M), by conjugate gradients for each column, and its certificate.

    Converged columns leave the products. A column that meets a direction p with p^T (H + damping I) p <= 0 stops, because the method is
    not defined beyond it. The certificate's Rayleigh quotients are Ritz values, the extremes on each column's whole Krylov space, so such a
    direction is found if it lies there. Memory besides ``product``: six matrices (P, M).

    Raises ConvergenceError unless all columns reach ``tolerance`` on the relative residual within ``max_iterations`` steps; with
    ``allow_unconverged`` the certificate says which did not. MethodError for invalid arguments; ProblemError or NonFiniteError for a
    ``right`` or a product of the wrong form, or with NaN or Inf.
    """
    right = checked_right_side(right, damping, tolerance, "max_iterations", max_iterations)
    system, norms = DampedOperator(product, damping), right.norm(dim=0)
    solution, remaining = torch.zeros_like(right), right.clone()
    stopped = torch.zeros_like(norms, dtype=torch.bool)
    iterations = 0
    while iterations < max_iterations:
        # Rounding separates the recursion's residual from the true one. The true one decides; columns above the tolerance start again.
        before = remaining.norm(dim=0)
        live = ((before > tolerance * norms) & ~stopped).nonzero().flatten()
        if not len(live):
            break
        steps, broken = _run_cycle(system, solution, remaining, live, tolerance * norms, max_iterations - iterations)
        iterations += steps
        stopped[broken] = True
        remaining[:, live] = right[:, live] - system(solution[:, live])
        if not bool((remaining.norm(dim=0) < 0.5 * before)[live].any()):
            break
    certificate = certify(
        "cg",
        system,
        remaining,
        norms,
        int(stopped.sum()),
        iterations,
        tolerance,
        scale=None,
        limit=f"max_iterations={max_iterations}",
        allow_unconverged=allow_unconverged,
    )
    return solution, certificate


def _run_cycle(
    system: DampedOperator, solution: Tensor, remaining: Tensor, live: Tensor, tolerances: Tensor, max_steps: int
) -> tuple[int, Tensor]:
    """Conjugate gradients on the columns ``live`` from ``solution``, which is updated, and its residual ``remaining`` (P, M).

    Returns the number of steps and the columns that met negative curvature.
    """
    residual = remaining[:, live]
    direction, square = residual, residual.square().sum(dim=0)
    steps, broken = 0, [live[:0]]
    # The entries (curvature, ratio) of each column's Lanczos tridiagonal matrix, one pair a step.
    lanczos: dict[int, list[tuple[float, float]]] = {column: [] for column in live.tolist()}
    ratio = torch.zeros_like(square)
    while len(live) and steps < max_steps:
        image = system(direction)
        curvature = (direction * image).sum(dim=0)
        for column, pair in zip(live.tolist(), torch.stack([curvature / square, ratio], 1).tolist(), strict=True):
            lanczos[column].append((pair[0], pair[1]))
        steps += 1
        positive = curvature > 0
        broken.append(live[~positive])
        length = torch.where(positive, square / curvature, 0.0)
        solution[:, live] += length * direction
        residual = residual - length * image
        previous, square = square, residual.square().sum(dim=0)
        ratio = square / previous
        active = positive & (square.sqrt() > tolerances[live])
        direction = (residual + ratio * direction)[:, active]
        live, residual, square, ratio = live[active], residual[:, active], square[active], ratio[active]
    for entries in lanczos.values():
        system.record_rayleigh(*_extreme_ritz_values(entries))
    return steps, torch.cat(broken)


def _extreme_ritz_values(entries: list[tuple[float, float]]) -> tuple[float, float]:
    """Smallest and largest eigenvalue of one column's Lanczos matrix: the extremes of H + damping I on its Krylov space."""
    curvature, ratio = torch.tensor(entries, dtype=torch.float64).T
    diagonal = curvature.clone()
    diagonal[1:] += ratio[1:] * curvature[:-1]
    beside = ratio[1:].sqrt() * curvature[:-1]
    values = torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))
    return float(values[0]), float(values[-1])
