"""From the contents of a score file to phi in the experiment's order and sign. Contents that do not fit are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import MethodError, NonFiniteError
from genrep_dist.external.contents import Array, Contents, Ids, require_real


def assemble(
    path: Path, contents: Contents, positive_raises: bool, train_ids: Ids, test_ids: Ids, positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Phi (N, M) float64: rows in the order of ``train_ids`` (N,), columns the samples at ``positions`` (M,) of ``test_ids`` (T,).

    A positive phi raises the logit. If the file has ids, rows and columns are reordered by them. Without test ids it may have M or T
    columns. MethodError for a shape, dtype or ids that do not fit, NonFiniteError for NaN or Inf among the scores that are used.
    """
    points = test_ids[np.asarray(positions, dtype=np.int64)]
    train_axis = 1 if contents.transposed else 0
    _check_form(path, contents)
    _check_shape(path, contents, len(train_ids), len(points), len(test_ids))
    num_columns = contents.scores.shape[1 - train_axis]
    rows = np.arange(len(train_ids))
    if contents.train_ids is not None:
        _check_ids(f"{path}, train ids", contents.train_ids, known=train_ids, needed=train_ids)
        rows = _indices(contents.train_ids, train_ids)
    if contents.test_ids is not None:
        _check_ids(f"{path}, test ids", contents.test_ids, known=test_ids, needed=points)
        columns = _indices(contents.test_ids, points)
    else:
        columns = np.arange(len(points)) if num_columns == len(points) else np.asarray(positions, dtype=np.int64)
    # Columns first: a file may hold the whole test set, of which few samples are explained.
    taken = contents.scores.take(columns, 1 - train_axis)
    taken = taken.T if contents.transposed else taken
    phi = taken.take(rows, 0).astype(np.float64)
    _check_finite(path, phi, contents.transposed, (rows, columns), (train_ids, points))
    # Adding zero turns -0 into +0, so that equal scores are equal bytes.
    return np.ascontiguousarray((phi if positive_raises else -phi) + 0.0)


def _check_form(path: Path, contents: Contents) -> None:
    scores = contents.scores
    if len(scores.shape) != 2:
        raise MethodError(
            "scores are not a matrix",
            where=str(path),
            expected="two dimensions, train and test",
            got=f"shape {tuple(scores.shape)}",
            remedy="reduce other dimensions, such as one of layers, before saving",
        )
    require_real(scores.dtype, str(path))


def _check_shape(path: Path, contents: Contents, num_train: int, num_points: int, num_test: int) -> None:
    """As many rows and columns as ids; without ids, as many as samples."""
    train_sizes = (num_train,) if contents.train_ids is None else (len(contents.train_ids),)
    test_sizes = tuple(dict.fromkeys((num_points, num_test))) if contents.test_ids is None else (len(contents.test_ids),)
    shape = contents.scores.shape
    rows, columns = shape[::-1] if contents.transposed else shape
    if rows in train_sizes and columns in test_sizes:
        return
    train, test = f"{train_sizes[0]} training samples", f"{' or '.join(map(str, test_sizes))} test samples"
    swapped = columns in train_sizes and rows in test_sizes
    raise MethodError(
        "scores are transposed" if swapped else "the shape of the scores does not fit",
        where=str(path),
        expected=f"{test} x {train}" if contents.transposed else f"{train} x {test}",
        got=f"shape {tuple(shape)}",
        remedy=f"set transposed: {str(not contents.transposed).lower()}" if swapped else "score exactly the exported data",
    )


def _check_ids(where: str, ids: Ids, known: Ids, needed: Ids) -> None:
    different, counts = np.unique(ids, return_counts=True)
    faults = {
        "ids occur more than once": different[counts > 1],
        "ids belong to no sample of this experiment": np.setdiff1d(ids, known),
        "ids are missing": np.setdiff1d(needed, ids),
    }
    for fault, bad in faults.items():
        if len(bad):
            shown = ", ".join(map(str, bad[:5].tolist())) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            at = np.flatnonzero(np.isin(ids, bad))
            raise MethodError(
                fault,
                where=where + (f", at position {int(at[-1])}" if len(at) else ""),
                expected=f"each of the {len(needed)} ids once",
                got=shown,
                remedy="score exactly the exported data",
            )


def _indices(ids: Ids, wanted: Ids) -> Ids:
    """The index in ``ids`` of each of ``wanted``. ``ids`` contains each of them once."""
    order = np.argsort(ids)
    indices: Ids = order[np.searchsorted(ids, wanted, sorter=order)]
    return indices


def _check_finite(path: Path, phi: Array, transposed: bool, indices: tuple[Ids, Ids], ids: tuple[Ids, Ids]) -> None:
    bad = ~np.isfinite(phi)
    if not bad.any():
        return
    i, j = (int(k) for k in np.argwhere(bad)[0])
    place = (int(indices[0][i]), int(indices[1][j]))
    row, column = place[::-1] if transposed else place
    raise NonFiniteError(
        "scores contain NaN or Inf",
        where=f"{path}, row {row}, column {column}: train id {ids[0][i]}, test id {ids[1][j]}",
        expected="finite numbers",
        got=f"{phi[i, j]}; {int(bad.sum()):,} such numbers",
        remedy="find out why the tool produced them; they are not replaced here",
    )
