"""The linear systems of the surrogate's Newton steps, solved from products with K alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genrep_dist.core.solvers.checks import require_finite, require_form
from genrep_dist.core.solvers.nystrom import num_nystrom_columns

Matvec = Callable[[Tensor], Tensor]
"""alpha (N, C) -> K alpha (N, C), both float64; K symmetric positive semi-definite."""

GramColumns = Callable[[Tensor], Tensor]
"""Row numbers (r,) int64 of K, ascending -> K[:, rows] (N C, r) float64. A row is a sample times an output."""

MAX_STEPS = 1000
MAX_STORED_PRODUCTS = 64


class DualSystem:
    """Systems (lam I + S K S/n) z = b for one K (N C, N C), symmetric positive semi-definite, and changing roots S (N, C, C).

    Solved by conjugate gradients with a Nystrom preconditioner F F^T of K. F comes from ``columns`` of K, if they are given: there are
    :func:`num_nystrom_columns` of them, evenly spaced in the weight S S of the first system. It also comes from the first 64 products with
    K of earlier systems, which cost nothing more. Everything is float64. Memory: at most 280 tensors (N, C), and nystrom.MAX_BYTES.

    ``matvecs`` counts the products with K; all columns together count as one. ``failure`` says what is wrong with K, if something is.
    """

    def __init__(self, matvec: Matvec, shape: torch.Size, lam: float, columns: GramColumns | None = None) -> None:
        self._matvec = matvec
        self._shape = shape
        self._lam = lam
        self._columns = columns
        # F (N C, r) from the columns, made by the first system.
        self._column_factor: Tensor | None = None
        # Unit vectors v and products K v as columns, of which the first ``_num_stored`` are in use.
        self._vectors = torch.empty(0)
        self._products = torch.empty(0)
        self._num_stored = 0
        self.matvecs = 0
        self.failure = ""

    def product(self, vector: Tensor) -> Tensor:
        """K v (N, C), counted. Raises ProblemError for the wrong form and NonFiniteError for NaN or Inf."""
        self.matvecs += 1
        product = require_form(self._matvec(vector), self._shape, "the product with the gram matrix", "matvec")
        return require_finite(product, "K alpha", "surrogate")

    def solve(self, root: Tensor, right: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """S z and K S z, both (N, C), for an approximate solution z with b = ``right`` (N, C) and S = ``root`` (N, C, C).

        The residual satisfies ||S ((lam I + S K S/n) z - b)|| <= ``tolerance``, unless 1,000 steps are not enough or negative curvature is
        found (``failure``). A Newton step needs both results; K S z costs no further product. The start is z = 0, so <b, z> never exceeds
        its value at the solution.
        """
        n = self._shape[0]
        precondition = self._preconditioner(root)
        solution, k_solution = torch.zeros_like(right), torch.zeros_like(right)
        residual = right
        scaled = precondition(residual)
        direction = scaled
        square = float((residual * scaled).sum())
        for _ in range(MAX_STEPS):
            if square <= 0 or float(apply_blocks(root, residual).norm()) <= tolerance:
                break
            s_direction = apply_blocks(root, direction)
            k_direction = self.product(s_direction)
            self._store(s_direction, k_direction)
            image = self._lam * direction + apply_blocks(root, k_direction) / n
            curvature = float((direction * image).sum())
            if curvature <= 0:
                relative = curvature / float((direction * direction).sum())
                self.failure = f"K is not positive semi-definite: lam I + S K S/n has curvature {relative:.3g}"
                break
            length = square / curvature
            solution = solution + length * s_direction
            k_solution = k_solution + length * k_direction
            residual = residual - length * image
            scaled = precondition(residual)
            previous, square = square, float((residual * scaled).sum())
            direction = scaled + (square / previous) * direction
        return solution, k_solution

    def _store(self, vector: Tensor, product: Tensor) -> None:
        norm = float(vector.norm())
        if norm == 0 or self._num_stored == MAX_STORED_PRODUCTS:
            return
        if self._num_stored == 0:
            self._vectors = vector.new_empty(vector.numel(), MAX_STORED_PRODUCTS)
            self._products = torch.empty_like(self._vectors)
        self._vectors[:, self._num_stored] = vector.reshape(-1) / norm
        self._products[:, self._num_stored] = product.reshape(-1) / norm
        self._num_stored += 1

    def _make_column_factor(self, root: Tensor) -> Tensor:
        """F (N C, r) from columns of K; r = 0 without ``columns``."""
        size = self._shape.numel()
        if self._columns is None:
            return root.new_empty(size, 0)
        rows = _choose_rows(root, num_nystrom_columns(size))
        self.matvecs += 1
        columns = require_form(self._columns(rows), (size, len(rows)), "the block of columns of the gram matrix", "columns")
        require_finite(columns.reshape(self._shape[0], -1), "columns of K", "surrogate")
        return _nystrom_factor(columns, columns[rows])

    def _preconditioner(self, root: Tensor) -> Matvec:
        """The inverse of I + S F F^T S/(n lam) by Woodbury's identity; the identity as long as there is no F."""
        if self._column_factor is None:
            self._column_factor = self._make_column_factor(root)
        has_columns = self._column_factor.shape[1] > 0
        factors = [self._column_factor] if has_columns else []
        if self._num_stored:
            vectors, products = self._vectors[:, : self._num_stored], self._products[:, : self._num_stored]
            if has_columns:
                # The stored products approximate what the columns' approximation leaves of K.
                products = products - self._column_factor @ (self._column_factor.T @ vectors)
            factors.append(_nystrom_factor(products, vectors.T @ products))
        if not factors:
            return lambda vector: vector
        scaled = torch.cat([torch.einsum("ncd,ndm->ncm", root, f.reshape(*self._shape, f.shape[1])).flatten(0, 1) for f in factors], dim=1)
        scaled /= math.sqrt(self._shape[0])
        small = scaled.T @ scaled
        small.diagonal().add_(self._lam)
        cholesky, info = torch.linalg.cholesky_ex(small)
        if int(info) != 0:
            # lam is below the rounding of K's leading direction: solve without a preconditioner; the certificate judges the answer.
            return lambda vector: vector

        def precondition(vector: Tensor) -> Tensor:
            column = vector.reshape(-1, 1)
            return (column - scaled @ torch.cholesky_solve(scaled.T @ column, cholesky)).reshape(self._shape)

        return precondition


def _choose_rows(root: Tensor, count: int) -> Tensor:
    """At most ``count`` rows of K, ascending, evenly spaced in a weight: half of it uniform, half each row's own curvature S S.

    K matters where the loss is curved, and where that is at the solution is not known yet.
    """
    curvature = root.square().sum(dim=2).reshape(-1)
    size = len(curvature)
    if count >= size:
        return torch.arange(size, device=root.device)
    total = float(curvature.sum())
    weight = torch.full_like(curvature, 1 / size) if total == 0 else 0.5 / size + 0.5 * curvature / total
    steps = (torch.arange(count, dtype=weight.dtype, device=root.device) + 0.5) / count
    rows: Tensor = torch.unique_consecutive(torch.searchsorted(weight.cumsum(0), steps).clamp(max=size - 1))
    return rows


def _nystrom_factor(products: Tensor, inner: Tensor) -> Tensor:
    """F (N C, m) with F F^T = (K V) (V^T K V)^-1 (K V)^T, from ``products`` = K V and ``inner`` = V^T K V."""
    values, rotation = torch.linalg.eigh((inner + inner.T) / 2)
    # The inverse root would amplify directions that are rounding errors of the others.
    kept = values > 1e-10 * values[-1].abs()
    factor: Tensor = products @ (rotation[:, kept] / values[kept].sqrt())
    return factor


def apply_blocks(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Per-sample products (N, C) of ``blocks`` (N, C, C) with ``vectors`` (N, C)."""
    return torch.einsum("ncd,nd->nc", blocks, vectors)
