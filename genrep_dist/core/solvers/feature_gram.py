"""A kernel's gram as products with its features: K alpha = Phi (Phi^T alpha), without K.

N counts training samples, C outputs, R rows of the gram (N C, or N of a scalar kernel that all outputs share), and D the numbers of a
feature vector of one row: P for the NTK, k for a projection of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError

RowBlocks = Callable[[], Iterable[Tensor]]
"""Each call passes over the features of all R rows of the gram in order, in blocks (B, D)."""

BLOCK_NUMEL, MAX_SAMPLES = 2**21, 4096
"""A block of features holds about this many numbers, and at most so many samples."""
BLOCK_BYTES = 24
"""Memory of one number of a block: as it is read, in float64, and what is being replaced."""


def samples_of_block(num_train: int, rows_per_sample: int, width: int) -> int:
    """Samples in a block of features: a function of these sizes alone, so that results do not depend on the memory budget."""
    return max(1, min(num_train, MAX_SAMPLES, BLOCK_NUMEL // max(1, rows_per_sample * width)))


class FeatureGram:
    """K (R, R) = Phi Phi^T with Phi (R, D), a :class:`~genrep_dist.core.importances.base.GramOperator`.

    ``blocks``: Phi, of ``num_train`` samples with ``rows_per_sample`` rows each (C, or 1 of a scalar kernel). With ``hold`` the first pass
    keeps them, 4 R D bytes as float32, and others read them there; else each product passes over ``blocks`` twice. Sums are in float64 and
    follow the blocks alone, so ``hold`` changes no bit. Memory besides: BLOCK_BYTES for each number of a block, and vectors (D, C).

    Raises ProblemError if a pass has other than R rows.
    """

    def __init__(self, blocks: RowBlocks, num_train: int, rows_per_sample: int = 1, *, hold: bool = False) -> None:
        self.size = num_train * rows_per_sample
        self._blocks, self._rows_per_sample, self._hold = blocks, rows_per_sample, hold
        self._held: list[Tensor] = []

    def matvec(self, alpha: Tensor) -> Tensor:
        """K alpha (N, C) for ``alpha`` (N, C) float64."""
        vectors = alpha if self._rows_per_sample == 1 else alpha.reshape(self.size, 1)
        return self._times(self._transposed_times(vectors)).reshape(alpha.shape)

    def sample(self, rows: Tensor, num_outputs: int) -> Tensor:
        """K[:, rows] (N C, r) float64 for ``rows`` (r,) of the N C rows of K."""
        repeated = num_outputs // self._rows_per_sample
        entries, where = torch.unique(rows // repeated, return_inverse=True)
        return columns_of_outputs(self._times(self._rows(entries).T), rows, where, repeated)

    def columns(self, rows: Tensor, update: Tensor) -> Tensor:
        """K[:, rows] ``update`` (N, C) for ``rows`` (B,) and ``update`` (B, C) float64."""
        entries = (rows[:, None] * self._rows_per_sample + torch.arange(self._rows_per_sample)).flatten()
        vectors = update if self._rows_per_sample == 1 else update.reshape(-1, 1)
        return self._times(self._rows(entries).T @ vectors).reshape(-1, update.shape[1])

    def _transposed_times(self, vectors: Tensor) -> Tensor:
        """Phi^T ``vectors`` (D, V) for (R, V)."""
        parts = (block.T @ vectors[at] for at, block in self._passed())
        total = next(parts)
        for part in parts:
            total += part
        return total

    def _times(self, vectors: Tensor) -> Tensor:
        """Phi ``vectors`` (R, V) for (D, V)."""
        result = vectors.new_empty(self.size, vectors.shape[1])
        for at, block in self._passed():
            result[at] = block @ vectors
        return result

    def _rows(self, entries: Tensor) -> Tensor:
        """Phi[entries] (r, D) float64."""
        result = torch.empty(0, dtype=torch.float64)
        for at, block in self._passed():
            result = result if result.numel() else block.new_empty(len(entries), block.shape[1])
            chosen = (entries >= at.start) & (entries < at.stop)
            result[chosen] = block[entries[chosen] - at.start]
        return result

    def _passed(self) -> Iterator[tuple[slice, Tensor]]:
        """The blocks in float64, with the rows of the gram that each has."""
        keeping = self._hold and not self._held
        kept: list[Tensor] = []
        start = 0
        for block in self._held or self._blocks():
            at = slice(start, start + len(block))
            if at.stop > self.size:
                raise _misfit(self.size, at.stop)
            if keeping:
                kept.append(block)
            yield at, block.to(torch.float64)
            start = at.stop
        if start != self.size:
            raise _misfit(self.size, start)
        if keeping:
            self._held = kept


def columns_of_outputs(base: Tensor, rows: Tensor, where: Tensor, repeated: int) -> Tensor:
    """Columns ``rows`` (r,) of the N C rows of K, from those of the stored matrix: ``base`` (R, u), at ``where`` (r,) in it.

    A scalar kernel is seen as the matrix-valued one that it stands for, K times the identity of ``repeated`` outputs.
    """
    if repeated == 1:
        return base[:, where] if len(where) != base.shape[1] else base
    result = torch.zeros(len(base), repeated, len(rows), dtype=torch.float64)
    result[:, rows % repeated, torch.arange(len(rows))] = base[:, where]
    return result.flatten(0, 1)


def _misfit(expected: int, got: int) -> ProblemError:
    return ProblemError("features do not fit the gram", where="features", expected=f"{expected:,} rows", got=f"{got:,}")
