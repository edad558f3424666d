"""The stored gram as an operator: the upper half of the tiles on disk, matrix-vector products in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.solvers.feature_gram import columns_of_outputs
from genrep_dist.store.artifacts import ArrayReader, Artifact

Matrix = npt.NDArray[np.float32]

STRIP_BYTES = 2**21
"""A tile is turned into float64 so many bytes at a time: twice the whole tile beside it would not fit where the tile just does."""


class Gram:
    """K (R, R), symmetric, from its tiles (i, j) with i <= j. R = N C for a matrix-valued kernel, else N = ``num_samples``."""

    def __init__(self, artifact: Artifact, memory_budget_bytes: int, num_samples: int | None = None) -> None:
        self._reader: ArrayReader = artifact.reader("gram")
        self.size = self._reader.shape[0]
        self._rows_per_sample = self.size // (num_samples or self.size)
        self.edge = self._reader.chunks[0]
        # Half of the budget is left for the solver's vectors and for one tile on its way.
        self._dense: Tensor | None = None
        if 3 * 4 * self.size * self.size <= memory_budget_bytes // 2:
            self._dense = torch.from_numpy(self.dense()).double()

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of every stored tile: the upper half and the diagonal."""
        for row in range(0, self.size, self.edge):
            for column in range(row, self.size, self.edge):
                yield slice(row, min(row + self.edge, self.size)), slice(column, min(column + self.edge, self.size))

    def dense(self) -> Matrix:
        """The whole matrix (R, R) float32; 4 R^2 bytes, and two tiles while it is read."""
        result = np.empty((self.size, self.size), dtype=np.float32)
        for rows, columns in self.tiles():
            result[rows, columns] = self._reader.read(rows, columns)
            if rows != columns:
                result[columns, rows] = result[rows, columns].T
        return result

    def matvec(self, alpha: Tensor) -> Tensor:
        """K alpha for alpha (N, C) float64. A gram with R = N is a scalar kernel, the same for each of the C outputs.

        Memory beside alpha and the result: one tile and what reading it takes, another one.
        """
        vectors = alpha if self._rows_per_sample == 1 else alpha.reshape(self.size, 1)
        if self._dense is not None:
            return (self._dense @ vectors).reshape(alpha.shape)
        result = torch.zeros_like(vectors)
        for rows, columns in self.tiles():
            # No name here holds the tile: it is gone before the next one is read.
            _add_product(result, vectors, rows, columns, torch.from_numpy(self._reader.read(rows, columns)))
        return result.reshape(alpha.shape)

    def sample(self, rows: Tensor, num_outputs: int) -> Tensor:
        """K[:, rows] (N C, r) float64 for ``rows`` (r,) of the N C rows of K; from tiles in one pass over them.

        A scalar kernel is seen as the matrix-valued one that it stands for, K times the identity of the C = ``num_outputs`` outputs.
        """
        repeated = num_outputs // self._rows_per_sample
        entries, where = torch.unique(rows // repeated, return_inverse=True)
        return columns_of_outputs(self._entries(entries), rows, where, repeated)

    def _entries(self, entries: Tensor) -> Tensor:
        """Columns (R, r) float64 of the stored matrix at ``entries`` (r,), ascending."""
        if self._dense is not None:
            return self._dense[entries].T.contiguous()  # K is symmetric, and its rows lie together
        result = torch.empty(self.size, len(entries), dtype=torch.float64)
        for rows, columns in self.tiles():
            tile = torch.from_numpy(self._reader.read(rows, columns))
            chosen = (entries >= columns.start) & (entries < columns.stop)
            result[rows, chosen] = tile[:, entries[chosen] - columns.start].double()
            if rows != columns:
                chosen = (entries >= rows.start) & (entries < rows.stop)
                result[columns, chosen] = tile[entries[chosen] - rows.start].T.double()
            del tile  # it is gone before the next one is read
        return result

    def columns(self, rows: Tensor, update: Tensor) -> Tensor:
        """K[:, rows] ``update`` (N, C) for ``rows`` (B,) and ``update`` (B, C) float64: what a step over a batch changes.

        From the matrix in memory at B/N of a whole product's cost; from tiles a whole product.
        """
        if self._dense is None:
            whole = torch.zeros(self.size // self._rows_per_sample, update.shape[1], dtype=torch.float64)
            return self.matvec(whole.index_add_(0, rows, update))
        if self._rows_per_sample == 1:
            return self._dense[rows].T @ update  # K is symmetric, and its rows lie together
        entries = (rows[:, None] * self._rows_per_sample + torch.arange(self._rows_per_sample)).flatten()
        return (self._dense[entries].T @ update.reshape(-1, 1)).reshape(-1, self._rows_per_sample)


def _add_product(result: Tensor, vectors: Tensor, rows: slice, columns: slice, tile: Tensor) -> None:
    """Add one tile's part, and its mirror image's, of K ``vectors`` (R, C) to ``result`` (R, C)."""
    height = max(1, STRIP_BYTES // (8 * tile.shape[1]))
    for start in range(0, tile.shape[0], height):
        strip = tile[start : start + height].double()
        at = slice(rows.start + start, rows.start + start + len(strip))
        result[at] += strip @ vectors[columns]
        if rows != columns:
            result[columns] += strip.T @ vectors[at]
