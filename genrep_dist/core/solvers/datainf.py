"""DataInf: the average of the inverses of damped rank-one matrices in place of the inverse of their average (Kwon et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.solvers.gauss_newton import absolute_damping

GradientBlocks = Callable[[], Iterator[Tensor]]
"""Each call passes over the loss gradients (B, P) of all training samples in order, in blocks."""


@dataclass(frozen=True)
class DataInfCertificate:
    """``damping`` is the largest delta of a layer, ``smallest_damping`` the smallest, ``mean_eigenvalue`` = trace(H)/P.

    ``residual`` is 0: a closed form is evaluated, and no system is solved. ``flat_blocks`` counts the layers without gradients, which have
    no relative damping and are left out.
    """

    damping: float
    smallest_damping: float
    mean_eigenvalue: float
    residual: float
    flat_blocks: int


class DataInf:
    """S (P, P) by blocks, one of each layer: S_l = (1/N) sum_i (g_i g_i^T + delta_l I)^-1, with the loss gradients g_i.

    By Sherman and Morrison, S_l v = (1/delta_l) (v - (1/N) sum_i g_i <g_i, v> / (delta_l + |g_i|^2)). ``sizes``: numbers of each layer, in
    the order of the vector of P. ``damping`` is delta itself, or, if ``relative``, in units of the mean eigenvalue of each block,
    (1/(N n_l)) sum_i |g_i|^2 with n_l numbers. One pass over the samples, and one for each :meth:`solve`. Sums are float64.
    """

    def __init__(self, blocks: GradientBlocks, sizes: Sequence[int], *, damping: float, relative: bool) -> None:
        self._blocks, self._sizes = blocks, list(sizes)
        parts = [_squared_norms(rows.double(), self._sizes) for rows in blocks()]
        self._squares = torch.cat(parts)
        means = (self._squares.mean(dim=0) / torch.tensor(self._sizes).to(self._squares)).tolist()
        self.mean_eigenvalue = float(self._squares.sum(dim=1).mean()) / sum(self._sizes)
        absolute_damping(damping, self.mean_eigenvalue, relative=relative)
        self._deltas = [damping * mean if relative else damping for mean in means]

    def solve(self, vectors: Tensor) -> Tensor:
        """S ``vectors`` (M, P) float64. Zero for a layer without a damping. Memory: two results, and blocks of gradients in float64."""
        total, start = torch.zeros_like(vectors), 0
        for block in self._blocks():
            rows = block.to(vectors)
            squares, at = self._squares[start : start + len(rows)], 0
            for delta, size, own in zip(self._deltas, self._sizes, squares.unbind(dim=1), strict=True):
                part = slice(at, at + size)
                if delta > 0:
                    weights = (vectors[:, part] @ rows[:, part].T) / (delta + own)
                    total[:, part] += weights @ rows[:, part]
                at += size
            start += len(rows)
        result = vectors - total.div_(start)
        for delta, columns in zip(self._deltas, torch.split(result, self._sizes, dim=1), strict=True):
            columns.mul_(1 / delta if delta > 0 else 0.0)
        return result

    def certify(self) -> DataInfCertificate:
        used = [delta for delta in self._deltas if delta > 0]
        return DataInfCertificate(max(used), min(used), self.mean_eigenvalue, 0.0, len(self._deltas) - len(used))


def _squared_norms(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """|g|^2 of each layer (B, L), of gradients (B, P)."""
    return torch.stack([part.square().sum(dim=1) for part in torch.split(rows, list(sizes), dim=1)], dim=1)
