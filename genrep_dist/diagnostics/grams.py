"""Stored grams, read tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import nan_as_inf
from genrep_dist.store.artifacts import Artifact

Array = npt.NDArray[Any]


def gram_artifact(context: CheckContext, seed: int, kernel: str, epoch: int) -> Artifact:
    return context.store.artifact("gram", context.plan.keys.gram(seed, kernel, epoch))


def gram_product(context: CheckContext, seed: int, kernel: str, epoch: int, alpha: Array) -> Array:
    """K alpha (N, C) for ``alpha`` (N, C) float64, tile by tile. A gram of N rows is a scalar kernel, the same for each output."""
    vectors = alpha.reshape(context.plan.shape.gram_rows(kernel), -1)
    result = np.zeros_like(vectors)
    for rows, columns, tile in _tiles(gram_artifact(context, seed, kernel, epoch)):
        result[rows] += tile @ vectors[columns]
        if rows != columns:
            result[columns] += tile.T @ vectors[rows]
    return result.reshape(alpha.shape)


def gram_spectrum(artifact: Artifact, selected: Array) -> tuple[float, float]:
    """Largest asymmetry of a diagonal tile; and smallest / largest eigenvalue of the principal minor of rows ``selected`` (ascending)."""
    minor = np.empty((len(selected), len(selected)))
    asymmetry = 0.0
    for rows, columns, tile in _tiles(artifact):
        if rows == columns:
            asymmetry = max(asymmetry, float(np.abs(tile - tile.T).max()), key=nan_as_inf)
        i, j = _positions_within(selected, rows), _positions_within(selected, columns)
        part = tile[np.ix_(selected[i] - rows.start, selected[j] - columns.start)]
        minor[np.ix_(j, i)] = part.T
        minor[np.ix_(i, j)] = part
    if not np.isfinite(minor).all():
        return asymmetry, float("nan")
    # One triangle is used; symmetry has a finding of its own.
    eigenvalues = np.linalg.eigvalsh(minor, UPLO="U")
    largest = float(np.abs(eigenvalues).max())
    return asymmetry, float(eigenvalues[0]) / largest if largest > 0 else 0.0


def _tiles(artifact: Artifact) -> Iterator[tuple[slice, slice, Array]]:
    """(rows, columns, values) of every stored tile: the diagonal and above."""
    reader = artifact.reader("gram")
    size, edge = reader.shape[0], reader.chunks[0]
    spans = [slice(start, min(start + edge, size)) for start in range(0, size, edge)]
    for number, rows in enumerate(spans):
        for columns in spans[number:]:
            yield rows, columns, reader.read(rows, columns)


def _positions_within(selected: Array, span: slice) -> Array:
    """Positions in ``selected`` of its values within ``span``."""
    found: Array = np.flatnonzero((selected >= span.start) & (selected < span.stop))
    return found
