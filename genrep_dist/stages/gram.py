"""The stored gram as an operator: the upper half of the tiles on disk, matrix-vector products in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.store.artifacts import ArrayReader, Artifact

Matrix = npt.NDArray[np.float32]


class Gram:
    """K (R, R), symmetric, from its tiles (i, j) with i <= j. R = N C for a matrix-valued kernel, else N."""

    def __init__(self, artifact: Artifact, memory_budget_bytes: int) -> None:
        self._reader: ArrayReader = artifact.reader("gram")
        self.size = self._reader.shape[0]
        self.edge = self._reader.chunks[0]
        # Half of the budget is left for the solver's vectors and for one tile on its way.
        self._dense: Tensor | None = None
        if 3 * 4 * self.size * self.size <= memory_budget_bytes // 2:
            self._dense = torch.from_numpy(self.dense()).double()

    def tiles(self) -> Iterator[tuple[slice, slice, Matrix]]:
        """(rows, columns, values) of every stored tile: the upper half and the diagonal."""
        for row in range(0, self.size, self.edge):
            for column in range(row, self.size, self.edge):
                rows, columns = slice(row, min(row + self.edge, self.size)), slice(column, min(column + self.edge, self.size))
                yield rows, columns, self._reader.read(rows, columns)

    def dense(self) -> Matrix:
        """The whole matrix (R, R) float32; 4 R^2 bytes."""
        result = np.empty((self.size, self.size), dtype=np.float32)
        for rows, columns, values in self.tiles():
            result[rows, columns] = values
            if rows != columns:
                result[columns, rows] = values.T
        return result

    def matvec(self, alpha: Tensor) -> Tensor:
        """K alpha for alpha (N, C) float64. A gram with R = N is a scalar kernel, the same for each of the C outputs."""
        scalar_kernel = alpha.shape[0] == self.size
        vectors = alpha if scalar_kernel else alpha.reshape(self.size, 1)
        if self._dense is not None:
            return (self._dense @ vectors).reshape(alpha.shape)
        result = torch.zeros_like(vectors)
        for rows, columns, values in self.tiles():
            tile = torch.from_numpy(values).double()
            result[rows] += tile @ vectors[columns]
            if rows != columns:
                result[columns] += tile.T @ vectors[rows]
        return result.reshape(alpha.shape)
