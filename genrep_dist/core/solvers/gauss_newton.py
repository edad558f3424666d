"""The influence kernel by the exact generalized Gauss-Newton matrix (Eq. 15), and square roots of per-sample curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.errors import ConvergenceError, MethodError, ProblemError

_MAX_REFINEMENTS = 4
COLUMNS_AT_ONCE = 512
"""Test points that are solved for at once, so that memory does not grow with their number beyond their columns themselves."""


def square_root(curvature: Tensor, *, rounding: float | None = None) -> Tensor:
    """S (N, C, C), symmetric positive semi-definite with S @ S = ``curvature`` (N, C, C) per sample, in its dtype.

    ``rounding`` is the relative precision of ``curvature``, by default that of its dtype.
    Raises ProblemError if an eigenvalue is below zero by more than rounding: the loss is not convex in the outputs.
    """
    if curvature.dim() != 3 or curvature.shape[1] != curvature.shape[2]:
        raise ProblemError("curvature has the wrong form", where="square_root", expected="(N, C, C)", got=f"{tuple(curvature.shape)}")
    if curvature.shape[1] == 1:
        values, vectors = curvature[:, :, 0], torch.ones_like(curvature)
    else:
        values, vectors = torch.linalg.eigh(curvature)
    slack = 64 * (rounding or torch.finfo(curvature.dtype).eps) * values.abs().amax(dim=1, keepdim=True)
    # Negated, so that NaN is refused too.
    bad = ~(values >= -slack).all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ProblemError(
            "the loss is not convex in the model's outputs",
            where=f"second derivative of row {row}",
            expected="a positive semi-definite matrix",
            got=f"smallest eigenvalue {values[row].min().item():.3g}",
            remedy="use a convex loss: squared, logistic or softmax",
        )
    roots = values.clamp(min=0).sqrt()
    return (vectors * roots.unsqueeze(1)) @ vectors.transpose(1, 2)


@dataclass(frozen=True)
class GaussNewtonCertificate:
    """The quality of an influence kernel.

    ``damping`` is the absolute delta that was added to H. ``mean_eigenvalue`` = trace(H)/P over all P parameters, without damping.
    ``residual`` = max over test points of ||k_m - (delta I + gram h/n) K_inf[:, m]|| / ||k_m||, with k_m the column of K(train, test) and h
    the block diagonal of second derivatives. Only the exact kernel satisfies this equation.
    """

    damping: float
    mean_eigenvalue: float
    residual: float
    tolerance: float


def influence_kernel(
    gram: Tensor,
    cross: Tensor,
    curvature: Tensor,
    *,
    damping: float,
    relative: bool,
    num_parameters: int,
    tolerance: float = 1e-8,
) -> tuple[Tensor, GaussNewtonCertificate]:
    """The influence kernel (Eq. 15) K_inf (N, C, M) float64 = J (H + delta I)^-1 g_test, and its certificate.

    H = (1/n) sum_i J_i^T h_i J_i over all P parameters is the exact generalized Gauss-Newton matrix. It is positive semi-definite, so K_inf
    is a Mercer kernel. With the features G (NC, P), the roots S of h and W = S G/sqrt(n), H = W^T W and
    (delta I + W^T W)^-1 = (1/delta)(I - W^T (delta I + W W^T)^-1 W). All products are those of ``gram`` = G G^T (NC, NC), row n C + c, and
    ``cross`` = K(train, test) (N, C, M), so nothing of size P is formed. ``curvature`` (N, C, C) is h, the loss's second derivative at the
    model's outputs and the training targets.

    ``damping`` is delta itself, or, if ``relative``, delta in units of trace(H)/P, the mean of H's P eigenvalues, of which most are zero
    if P > NC. One Cholesky factorisation in float64, refined on the certificate's equation. Memory: three float64 matrices of the gram's
    size, ``gram`` included, four for C > 1; ``cross`` and the result, twelve matrices (NC, 512), and six of the size of ``curvature``.

    Raises ProblemError for shapes that do not fit and for a loss that is not convex; MethodError for a damping that is not positive;
    ConvergenceError if the factorisation fails or the residual is above ``tolerance``: the gram is then not positive semi-definite to the
    precision that this damping needs.
    """
    _check_influence(gram, cross, curvature, num_parameters)
    n, num_outputs, num_test = cross.shape
    gram, cross = gram.to(torch.float64), cross.to(torch.float64)
    root = square_root(curvature.to(torch.float64), rounding=torch.finfo(curvature.dtype).eps)
    curvature = root @ root
    mean_eigenvalue = _trace(gram, curvature) / num_parameters
    delta = absolute_damping(damping, mean_eigenvalue, relative=relative)
    cholesky = _factorise(gram, root, delta)

    columns = cross.flatten(0, 1)
    solution, worst = torch.empty_like(columns), 0.0
    for start in range(0, num_test, COLUMNS_AT_ONCE):
        part = slice(start, start + COLUMNS_AT_ONCE)
        solution[:, part], residual = _refined(gram, columns[:, part], root, curvature, cholesky, delta)
        worst = max(worst, residual)
    if not worst <= tolerance:
        raise not_solved(delta, worst, tolerance)
    return solution.reshape(n, num_outputs, num_test), GaussNewtonCertificate(delta, mean_eigenvalue, worst, tolerance)


def absolute_damping(damping: float, mean_eigenvalue: float, *, relative: bool) -> float:
    """Delta: ``damping`` itself, or, if ``relative``, times ``mean_eigenvalue``. Raises MethodError unless it is finite and above 0."""
    delta = damping * mean_eigenvalue if relative else damping
    if not (math.isfinite(delta) and delta > 0):
        raise MethodError(
            "the influence kernel needs a positive damping",
            where="influence damping",
            expected="a finite number above 0" + (", and curvature that is not zero everywhere" if relative else ""),
            got=f"{damping!r}" + (f" times the mean eigenvalue {mean_eigenvalue:.3g}" if relative else ""),
        )
    return delta


def not_solved(delta: float, residual: float, tolerance: float) -> ConvergenceError:
    """The error of a system whose residual is above the tolerance."""
    return ConvergenceError(
        "the influence kernel's linear system is not solved",
        where=f"influence, damping {delta:.3g}",
        expected=f"residual <= {tolerance:g}",
        got=f"residual {residual:.3g}",
        remedy="raise the damping, or compute gradients in higher precision",
    )


def not_positive_definite(delta: float, row: int, size: int) -> ConvergenceError:
    """The error of a system of ``size`` rows whose Cholesky factorisation fails at ``row``."""
    return ConvergenceError(
        "the influence kernel's system is not positive definite",
        where=f"influence, damping {delta:.3g}",
        expected="a positive semi-definite matrix plus damping",
        got=f"factorisation fails at row {row} of {size}",
        remedy="raise the damping, or compute gradients in higher precision",
    )


def _refined(gram: Tensor, columns: Tensor, root: Tensor, curvature: Tensor, cholesky: Tensor, delta: float) -> tuple[Tensor, float]:
    """X (NC, M) with (delta I + gram h/n) X = ``columns`` (NC, M), and the largest relative residual; infinite if there is none."""
    n, num_outputs = root.shape[:2]

    def blockwise(blocks: Tensor, vectors: Tensor) -> Tensor:
        return torch.einsum("ncd,ndm->ncm", blocks, vectors.reshape(n, num_outputs, -1)).flatten(0, 1)

    def invert(right: Tensor) -> Tensor:
        """(delta I + gram h/n)^-1 ``right``, by Woodbury's identity."""
        inner = torch.cholesky_solve(blockwise(root, right), cholesky)
        return (right - gram @ blockwise(root, inner) / n) / delta

    norms = columns.norm(dim=0)
    solution, best = torch.zeros_like(columns), math.inf
    remaining = columns
    for _ in range(_MAX_REFINEMENTS):
        candidate = solution + invert(remaining)
        remaining = columns - delta * candidate - gram @ blockwise(curvature, candidate) / n
        # For a column of zeros the solution zero is exact.
        residual = float(torch.where(norms > 0, remaining.norm(dim=0) / norms, remaining.norm(dim=0)).max())
        if not residual < best:
            break
        solution, best = candidate, residual
    return solution, best


def _trace(gram: Tensor, curvature: Tensor) -> float:
    """trace(H) = (1/n) sum_i trace(h_i gram_ii), from the gram's diagonal blocks."""
    n, num_outputs = curvature.shape[:2]
    rows = torch.arange(n * num_outputs, device=gram.device).reshape(n, num_outputs)
    blocks = gram[rows.unsqueeze(2), rows.unsqueeze(1)]
    return float(torch.einsum("ncd,ndc->", curvature, blocks)) / n


def _factorise(gram: Tensor, root: Tensor, delta: float) -> Tensor:
    """Cholesky factor of delta I + S gram S/n."""
    n, num_outputs = root.shape[:2]
    system = torch.einsum("ncd,ndk->nck", root, gram.reshape(n, num_outputs, -1)).reshape(-1, n, num_outputs)
    system = torch.einsum("knd,ndc->knc", system, root).reshape(n * num_outputs, -1).div_(n)
    system.diagonal().add_(delta)
    cholesky: Tensor
    cholesky, info = torch.linalg.cholesky_ex(system)
    if int(info) != 0:
        raise not_positive_definite(delta, int(info) - 1, len(system))
    return cholesky


def _check_influence(gram: Tensor, cross: Tensor, curvature: Tensor, num_parameters: int) -> None:
    n, num_outputs = curvature.shape[0], curvature.shape[-1]
    size = n * num_outputs
    fits = curvature.shape == (n, num_outputs, num_outputs) and gram.shape == (size, size) and cross.dim() == 3
    if not (fits and cross.shape[:2] == (n, num_outputs) and size > 0 and num_parameters > 0):
        raise ProblemError(
            "gram, kernel and curvature do not fit each other",
            where="influence_kernel",
            expected="gram (NC, NC), cross (N, C, M), curvature (N, C, C), at least one parameter",
            got=f"gram {tuple(gram.shape)}, cross {tuple(cross.shape)}, curvature {tuple(curvature.shape)}, {num_parameters} parameters",
        )
