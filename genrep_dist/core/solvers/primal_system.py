"""The influence kernel by the primal system: the Gauss-Newton matrix itself, summed over blocks of features that are never all held.

N counts training samples, C outputs, M test points, and D the numbers of a feature vector: P for the NTK, k for a projection of it, C L for
L features that all outputs share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.solvers.gauss_newton import absolute_damping, not_positive_definite, not_solved, square_root
from genrep_dist.errors import ProblemError

FeatureBlocks = Callable[[], Iterable[Tensor]]
"""Each call passes over the features of all training samples in order, in blocks (B, C, D), or (B, L) where all outputs share them."""

PANEL = 512
"""Rows of the matrix that are updated by one product."""
MAX_REFINEMENTS = 4
EXACT = 1e-12
"""A residual that needs no refinement, which would take one more pass over the features."""


@dataclass(frozen=True)
class PrimalCertificate:
    """The quality of an influence kernel from its primal system.

    ``damping`` is the absolute delta that was added to H. ``mean_eigenvalue`` = trace(H)/P over all P parameters, without damping.
    ``residual`` = max over test points of ||g_m - (H + delta I) x_m|| / ||g_m||, with g_m the features of a test point and x_m the solution
    of which the kernel is made. H x_m is computed again from all features in float64. ``size`` is D.
    """

    damping: float
    mean_eigenvalue: float
    residual: float
    tolerance: float
    size: int


class PrimalSystem:
    """H + delta I (D, D), with H = (1/n) sum_i J_i^T h_i J_i over all samples, as its Cholesky factor.

    ``blocks``: the features J. ``curvature`` (N, C, C): h, the loss's second derivative at the model's outputs and the training targets.
    ``damping`` is delta itself, or, if ``relative``, delta in units of trace(H)/``num_parameters``. Everything is summed in float64.
    Memory: :func:`~genrep_dist.core.solvers.primal_sizes.system_bytes`, and six tensors of the size of ``curvature``.

    Raises ProblemError for shapes that do not fit and for a loss that is not convex; MethodError for a damping that is not positive;
    ConvergenceError if the factorisation fails.
    """

    def __init__(
        self, blocks: FeatureBlocks, curvature: Tensor, width: int, *, damping: float, relative: bool, num_parameters: int
    ) -> None:
        fits = curvature.dim() == 3 and curvature.shape[1] == curvature.shape[2] and curvature.numel() > 0
        if not (fits and width > 0 and num_parameters > 0):
            raise _misfit("curvature (N, C, C), features and parameters", f"{tuple(curvature.shape)}, {width}, {num_parameters}")
        root = square_root(curvature.to(torch.float64), rounding=torch.finfo(curvature.dtype).eps)
        self._curvature, self._blocks, self.width = root @ root, blocks, width
        factor = torch.zeros(width, width, dtype=torch.float64)
        for rows, at in self._rows():
            rows.add_curvature(factor, self._curvature[at])
        factor /= len(curvature)
        self.mean_eigenvalue = float(factor.diagonal().sum()) / num_parameters
        self.damping = absolute_damping(damping, self.mean_eigenvalue, relative=relative)
        factor.diagonal().add_(self.damping)
        failed = cholesky_in_place(factor)
        if failed is not None:
            raise not_positive_definite(self.damping, failed, width)
        self._factor = factor

    def solve(self, right: Tensor) -> Tensor:
        """X (D, M) with (H + delta I) X = ``right`` (D, M), to the accuracy of the factor."""
        half = torch.linalg.solve_triangular(self._factor, right, upper=False)
        solution: Tensor = torch.linalg.solve_triangular(self._factor.mT, half, upper=True)
        return solution

    def kernel(self, right: Tensor, tolerance: float = 1e-8) -> tuple[Tensor, PrimalCertificate]:
        """The influence kernel (Eq. 15) K (N, C, M) float64 = J (H + delta I)^-1 g as a whole, by :meth:`write_kernel`."""
        result = torch.empty(*self._curvature.shape[:2], right.shape[-1], dtype=torch.float64)

        def keep(start: int, block: Tensor) -> None:
            result[start : start + len(block)] = block

        return result, self.write_kernel(right, keep, tolerance)

    def write_kernel(self, right: Tensor, write: Callable[[int, Tensor], None], tolerance: float = 1e-8) -> PrimalCertificate:
        """K (N, C, M) float64 = J (H + delta I)^-1 g, for ``right`` (D, M) = g, by blocks of rows (B, C, M), and its certificate.

        ``write`` takes the first row of each block. One pass over the features gives K and the residual; where that is above rounding, the
        solution is refined, and a pass hands all rows over again. The last pass is that of the best solution. Memory: a block of K, five
        tensors of the size of ``right``. Raises ConvergenceError if the residual stays above ``tolerance``.
        """
        if right.dim() != 2 or len(right) != self.width:
            raise _misfit(f"right-hand sides ({self.width}, M)", f"{tuple(right.shape)}")
        right = right.to(torch.float64)
        norms, best, is_written = right.norm(dim=0), math.inf, False
        solution, remaining = torch.zeros_like(right), right
        for _ in range(MAX_REFINEMENTS):
            candidate = solution + self.solve(remaining)
            image, is_written = self._multiply(candidate, write), True
            remaining = right - image - self.damping * candidate
            # For a right-hand side of zero the solution zero is exact.
            left = torch.where(norms > 0, remaining.norm(dim=0) / norms, remaining.norm(dim=0))
            residual = float(left.max()) if len(left) else 0.0
            if not residual < best:
                is_written = False
                break
            solution, best = candidate, residual
            if best <= EXACT:
                break
        if not best <= tolerance:
            raise not_solved(self.damping, best, tolerance)
        if not is_written:
            self._multiply(solution, write)
        return PrimalCertificate(self.damping, self.mean_eigenvalue, best, tolerance, self.width)

    def diagonal(self, own: Tensor) -> Tensor:
        """K_c(x_i, x_i) (N, C) float64 with output ``own[i]`` of each sample; one pass over the features."""
        parts = [rows.with_own(self.solve(rows.own(own[at]).T), own[at]) for rows, at in self._rows()]
        return torch.cat(parts)

    def self_products(self, weights: Tensor) -> Tensor:
        """g^T (H + delta I)^-1 g (N,) float64 of each sample's g = sum_c ``weights[i, c]`` J_i[c]; one pass over the features."""
        parts = []
        for rows, at in self._rows():
            features = rows.weighted(weights[at].to(torch.float64))
            parts.append((features.T * self.solve(features.T)).sum(dim=0))
        return torch.cat(parts)

    def own_features(self, own: Tensor) -> Tensor:
        """Features (N, D) of output ``own[i]`` of each sample."""
        return torch.cat([rows.own(own[at]) for rows, at in self._rows()])

    def _multiply(self, vectors: Tensor, write: Callable[[int, Tensor], None]) -> Tensor:
        """H ``vectors`` (D, M), without damping. J ``vectors`` goes to ``write`` by blocks (B, C, M)."""
        image = torch.zeros_like(vectors)
        for rows, at in self._rows():
            block = rows.times(vectors)
            write(at.start, block)
            image += rows.transposed_times(self._curvature[at] @ block)
        return image.div_(len(self._curvature))

    def _rows(self) -> Iterator[tuple[_Whole | _Shared, slice]]:
        """The blocks in float64, with the samples of each. ProblemError unless they are the features of all samples."""
        num_train, num_outputs = self._curvature.shape[:2]
        start = 0
        for block in self._blocks():
            expected = (num_outputs, self.width) if block.dim() == 3 else (self.width // num_outputs,)
            stop = start + len(block)
            if tuple(block.shape[1:]) != expected or stop > num_train:
                raise _misfit(f"features of {num_train} samples, {num_outputs} outputs and {self.width} numbers", f"{tuple(block.shape)}")
            double = block.to(torch.float64)
            yield (_Whole(double) if block.dim() == 3 else _Shared(double, num_outputs)), slice(start, stop)
            start = stop
        if start != num_train:
            raise _misfit(f"features of {num_train} samples", f"{start}")


@dataclass(frozen=True)
class _Whole:
    """Features (B, C, D)."""

    values: Tensor

    def add_curvature(self, matrix: Tensor, curvature: Tensor) -> None:
        """Add sum_b J_b^T h_b J_b to the lower triangle of ``matrix`` (D, D), some rows at a time.

        The gradient of an output is zero for the last layer's parameters of the other outputs: products with such zeros are left out.
        """
        weighted = curvature @ self.values
        for panel in _panels(len(matrix)):
            part = self.values[:, :, panel]
            outputs = part.ne(0).any(dim=2).any(dim=0).nonzero().flatten()
            if len(outputs):
                right = weighted[:, outputs, : panel.stop].flatten(0, 1)
                matrix[panel, : panel.stop].addmm_(part[:, outputs].flatten(0, 1).T, right)

    def times(self, vectors: Tensor) -> Tensor:
        """(B, C, M) = J ``vectors`` (D, M)."""
        return self.values @ vectors

    def transposed_times(self, values: Tensor) -> Tensor:
        """(D, M) = J^T ``values`` (B, C, M)."""
        return self.values.flatten(0, 1).T @ values.flatten(0, 1)

    def own(self, outputs: Tensor) -> Tensor:
        return self.values[torch.arange(len(outputs)), outputs]

    def weighted(self, weights: Tensor) -> Tensor:
        """(B, D): sums over the outputs with ``weights`` (B, C)."""
        return torch.einsum("bc,bcd->bd", weights, self.values)

    def with_own(self, vectors: Tensor, own: Tensor) -> Tensor:
        """(B, C): the products of each sample's features with its own column of ``vectors`` (D, B)."""
        del own
        return torch.einsum("bcd,db->bc", self.values, vectors)


@dataclass(frozen=True)
class _Shared:
    """Features (B, L) of every output, of its own L parameters: D = C L."""

    values: Tensor
    num_outputs: int

    def add_curvature(self, matrix: Tensor, curvature: Tensor) -> None:
        """Add sum_b J_b^T h_b J_b to the lower triangle of ``matrix`` (D, D): its blocks are Phi^T diag(h_cd) Phi."""
        length = self.values.shape[1]
        for output in range(self.num_outputs):
            stop = (output + 1) * length
            right = (curvature[:, output, : output + 1, None] * self.values[:, None]).flatten(1)
            matrix[output * length : stop, :stop].addmm_(self.values.T, right)

    def times(self, vectors: Tensor) -> Tensor:
        return torch.einsum("bl,clm->bcm", self.values, self._by_output(vectors))

    def transposed_times(self, values: Tensor) -> Tensor:
        return torch.einsum("bl,bcm->clm", self.values, values).flatten(0, 1)

    def own(self, outputs: Tensor) -> Tensor:
        placed = self.values.new_zeros(len(self.values), self.num_outputs, self.values.shape[1])
        placed[torch.arange(len(outputs)), outputs] = self.values
        return placed.flatten(1)

    def weighted(self, weights: Tensor) -> Tensor:
        return (weights.unsqueeze(2) * self.values.unsqueeze(1)).flatten(1)

    def with_own(self, vectors: Tensor, own: Tensor) -> Tensor:
        del own
        return torch.einsum("bl,clb->bc", self.values, self._by_output(vectors))

    def _by_output(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(self.num_outputs, self.values.shape[1], -1)


def cholesky_in_place(matrix: Tensor) -> int | None:
    """Replace the lower triangle of ``matrix`` (D, D) by its Cholesky factor, of that triangle alone, without a copy of the matrix.

    What is above the diagonal has no meaning afterwards. Returns the row at which the factorisation fails, or None.
    """
    for panel in _panels(len(matrix)):
        corner, info = torch.linalg.cholesky_ex(matrix[panel, panel])
        if int(info) != 0:
            return int(panel.start) + int(info) - 1
        matrix[panel, panel] = corner
        below = matrix[panel.stop :, panel]
        below.copy_(torch.linalg.solve_triangular(corner.mT, below, upper=True, left=False))
        for right in _panels(len(matrix), panel.stop):
            matrix[right.start :, right].addmm_(matrix[right.start :, panel], matrix[right, panel].T, alpha=-1)
    return None


def _panels(size: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(at + PANEL, size)) for at in range(start, size, PANEL))


def _misfit(expected: str, got: str) -> ProblemError:
    return ProblemError("features and curvature do not fit each other", where="influence, primal system", expected=expected, got=got)
