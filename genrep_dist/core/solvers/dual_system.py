"""The linear systems of the surrogate's Newton steps, solved from products with K alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from genrep_dist.core.solvers.nystrom import num_landmarks
from genrep_dist.errors import NonFiniteError, ProblemError

Matvec = Callable[[Tensor], Tensor]

Columns = Callable[[Tensor], Tensor]
"""Rows (r,) int64 of K, ascending, to K[:, rows] (R, r) float64; rows count samples times outputs."""

MAX_STEPS = 1000
MAX_MEMORY = 64


class DualSystem:
    """(lam I + S K S/n) z = b for one K (N C x N C, symmetric positive semi-definite) and changing S, the per-sample roots (N, C, C).

    Conjugate gradients, preconditioned by a Nystroem approximation F F^T of K. It comes from columns of K at landmarks, where ``columns``
    gives them (:func:`num_landmarks` of them, evenly spaced in the weight S S of the first system), and from the first 64 products
    with K that earlier systems paid for: what one system learned of K's leading directions costs the next nothing.
    Everything is float64; memory is at most 280 tensors (N, C), some 2 kB for each row and output, and MAX_LANDMARK_BYTES with landmarks.
    ``matvecs`` counts the products, all columns together as one: they need K read once, and so many of its entries as there are
    landmarks. ``obstacle`` says what is wrong with K, where something was found to be.
    """

    def __init__(self, matvec: Matvec, shape: torch.Size, lam: float, columns: Columns | None = None) -> None:
        self._matvec = matvec
        self._shape = shape
        self._lam = lam
        self._columns = columns
        # F, the landmarks' columns first; made by the first system.
        self._factor: Tensor | None = None
        # Columns v and K v, the first ``_remembered`` of them in use; made when the first product comes.
        self._vectors = torch.empty(0)
        self._products = torch.empty(0)
        self._remembered = 0
        self.matvecs = 0
        self.obstacle = ""

    def product(self, vector: Tensor) -> Tensor:
        """K v (N, C), counted. Raises ProblemError for the wrong form and NonFiniteError for NaN or Inf."""
        self.matvecs += 1
        product = self._matvec(vector)
        if product.shape != self._shape or product.dtype != torch.float64:
            raise ProblemError(
                "the product with the gram matrix has the wrong form",
                where="matvec",
                expected=f"float64 of shape {tuple(self._shape)}",
                got=f"{product.dtype} of shape {tuple(product.shape)}",
            )
        require_finite(product, "K alpha")
        return product

    def solve(self, root: Tensor, right: Tensor, goal: float) -> tuple[Tensor, Tensor]:
        """S z and K S z, both (N, C), for z near the solution for b = ``right`` and S = ``root``.

        Near means ||S ((lam I + S K S/n) z - b)|| <= ``goal``. The pair is what a Newton step needs, and K S z costs no further product.
        Started from z = 0, so <b, z> never exceeds its value at the solution, whatever the accuracy.
        Stops early after 1,000 steps, or on negative curvature (``obstacle``).
        """
        n = self._shape[0]
        precondition = self._preconditioner(root)
        solution, k_solution = torch.zeros_like(right), torch.zeros_like(right)
        remaining = right
        scaled = precondition(remaining)
        direction = scaled
        square = float((remaining * scaled).sum())
        for _ in range(MAX_STEPS):
            if square <= 0 or float(apply_blocks(root, remaining).norm()) <= goal:
                break
            spread = apply_blocks(root, direction)
            k_spread = self.product(spread)
            self._remember(spread, k_spread)
            image = self._lam * direction + apply_blocks(root, k_spread) / n
            curvature = float((direction * image).sum())
            if curvature <= 0:
                relative = curvature / float((direction * direction).sum())
                self.obstacle = f"K is not positive semi-definite: lam I + S K S/n has curvature {relative:.3g}"
                break
            length = square / curvature
            solution = solution + length * spread
            k_solution = k_solution + length * k_spread
            remaining = remaining - length * image
            scaled = precondition(remaining)
            previous, square = square, float((remaining * scaled).sum())
            direction = scaled + (square / previous) * direction
        return solution, k_solution

    def _remember(self, vector: Tensor, product: Tensor) -> None:
        size = float(vector.norm())
        if size == 0 or self._remembered == MAX_MEMORY:
            return
        if self._remembered == 0:
            self._vectors = vector.new_empty(vector.numel(), MAX_MEMORY)
            self._products = torch.empty_like(self._vectors)
        self._vectors[:, self._remembered] = vector.reshape(-1) / size
        self._products[:, self._remembered] = product.reshape(-1) / size
        self._remembered += 1

    def _landmark_factor(self, root: Tensor) -> Tensor:
        """F (NC, r) of the landmarks' columns; (NC, 0) where no columns can be had."""
        size = self._shape.numel()
        if self._columns is None:
            return root.new_empty(size, 0)
        rows = _landmarks(root, num_landmarks(size))
        self.matvecs += 1
        columns = self._columns(rows)
        if columns.shape != (size, len(rows)) or columns.dtype != torch.float64:
            raise ProblemError(
                "the columns of the gram matrix have the wrong form",
                where="columns",
                expected=f"float64 of shape {(size, len(rows))}",
                got=f"{columns.dtype} of shape {tuple(columns.shape)}",
            )
        require_finite(columns.reshape(self._shape[0], -1), "columns of K")
        return _nystroem(columns, columns[rows])

    def _preconditioner(self, root: Tensor) -> Matvec:
        """The inverse of I + S F F^T S/(n lam), by Woodbury's identity in the dimension of F; the identity while there is none."""
        if self._factor is None:
            self._factor = self._landmark_factor(root)
        landmarks = self._factor.shape[1]
        factor = [self._factor] if landmarks else []
        if self._remembered:
            vectors, products = self._vectors[:, : self._remembered], self._products[:, : self._remembered]
            if landmarks:
                # Nystroem's approximation on both spans is that on the first, and on the second that of what the first leaves of K.
                products = products - self._factor @ (self._factor.T @ vectors)
            factor.append(_nystroem(products, vectors.T @ products))
        if not factor:
            return lambda vector: vector
        spread = torch.cat([torch.einsum("ncd,ndm->ncm", root, f.reshape(*self._shape, f.shape[1])).flatten(0, 1) for f in factor], dim=1)
        spread /= math.sqrt(self._shape[0])
        small = spread.T @ spread
        small.diagonal().add_(self._lam)
        cholesky, info = torch.linalg.cholesky_ex(small)
        if int(info) != 0:
            # lam is below the rounding of K's leading direction: no preconditioner, and the certificate will say what the answer is worth.
            return lambda vector: vector

        def precondition(vector: Tensor) -> Tensor:
            column = vector.reshape(-1, 1)
            return (column - spread @ torch.cholesky_solve(spread.T @ column, cholesky)).reshape(self._shape)

        return precondition


def _landmarks(root: Tensor, count: int) -> Tensor:
    """``count`` rows of K, ascending, evenly spaced: half of the weight is each row's own curvature, half is shared equally.

    Where the loss is flat K does not matter, and where it is curved at the solution is not known yet.
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


def _nystroem(products: Tensor, inner: Tensor) -> Tensor:
    """F (NC, m) with F F^T = (K V) (V^T K V)^-1 (K V)^T, from ``products`` = K V and ``inner`` = V^T K V."""
    values, rotation = torch.linalg.eigh((inner + inner.T) / 2)
    # Directions that are a rounding error of the others would be blown up by the inverse root.
    kept = values > 1e-10 * values[-1].abs()
    factor: Tensor = products @ (rotation[:, kept] / values[kept].sqrt())
    return factor


def apply_blocks(blocks: Tensor, vectors: Tensor) -> Tensor:
    """Per-sample products (N, C) of ``blocks`` (N, C, C) with ``vectors`` (N, C)."""
    return torch.einsum("ncd,nd->nc", blocks, vectors)


def require_finite(values: Tensor, name: str) -> None:
    """Raise NonFiniteError naming the rows of ``values`` (N, C) that hold NaN or Inf."""
    finite = torch.isfinite(values).all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        raise NonFiniteError(
            f"{name} hold NaN or Inf",
            where="surrogate",
            expected="finite numbers",
            got=f"{len(rows)} training rows, the first: {rows[:10]}",
        )
