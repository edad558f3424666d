"""From a file's contents to phi in the order and with the sign of this experiment; whatever does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import MethodError, NonFiniteError
from genrep_dist.external.contents import Array, Contents, Ids


def assemble(
    path: Path, contents: Contents, positive_raises: bool, train_ids: Ids, test_ids: Ids, positions: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Phi (N, M): rows as ``train_ids`` (N,), columns the samples at ``positions`` of ``test_ids`` (T,); positive raises the logit.

    Ids that came with the scores rule over their order. Without test ids there may be M columns, or T. MethodError for a shape, a
    dtype or ids that do not fit, NonFiniteError for NaN or Inf among the scores that are used.
    """
    points = test_ids[np.asarray(positions, dtype=np.int64)]
    train_axis = 1 if contents.transposed else 0
    _check_form(path, contents)
    _check_shape(path, contents, len(train_ids), len(points), len(test_ids))
    num_columns = contents.scores.shape[1 - train_axis]
    rows = np.arange(len(train_ids))
    if contents.train_ids is not None:
        _check_ids(f"{path}, train ids", contents.train_ids, known=train_ids, needed=train_ids)
        rows = _places(contents.train_ids, train_ids)
    if contents.test_ids is not None:
        _check_ids(f"{path}, test ids", contents.test_ids, known=test_ids, needed=points)
        columns = _places(contents.test_ids, points)
    else:
        columns = np.arange(len(points)) if num_columns == len(points) else np.asarray(positions, dtype=np.int64)
    # The columns first: of a whole test set they are few.
    taken = contents.scores.take(columns, 1 - train_axis)
    taken = taken.T if contents.transposed else taken
    phi = taken.take(rows, 0).astype(np.float64)
    _check_finite(path, phi, contents.transposed, (rows, columns), (train_ids, points))
    # Adding zero makes every -0 a +0, so that equal scores are equal bytes.
    return np.ascontiguousarray((phi if positive_raises else -phi) + 0.0)


def _check_form(path: Path, contents: Contents) -> None:
    scores = contents.scores
    if len(scores.shape) != 2:
        raise MethodError(
            "scores are no matrix",
            where=str(path),
            expected="two dimensions, train and test",
            got=f"shape {tuple(scores.shape)}",
            remedy="reduce what is left over, such as the dimension of layers, before saving",
        )
    if np.dtype(scores.dtype).kind not in "fiub":
        raise MethodError(
            "scores are no real numbers",
            where=str(path),
            expected="floating point or integers",
            got=str(scores.dtype),
            remedy="save them as float32 or float64",
        )


def _check_shape(path: Path, contents: Contents, num_train: int, num_points: int, num_test: int) -> None:
    """As many rows and columns as ids; without ids, as many as samples."""

    def fits(rows: int, columns: int) -> bool:
        row_fits = rows == (num_train if contents.train_ids is None else len(contents.train_ids))
        return row_fits and columns in ((num_points, num_test) if contents.test_ids is None else (len(contents.test_ids),))

    shape = contents.scores.shape
    rows, columns = (shape[1], shape[0]) if contents.transposed else (shape[0], shape[1])
    if fits(rows, columns):
        return
    train = f"{num_train if contents.train_ids is None else len(contents.train_ids)} training samples"
    test = f"{num_points} or {num_test} test samples" if contents.test_ids is None else f"{len(contents.test_ids)} test samples"
    if num_points == num_test and contents.test_ids is None:
        test = f"{num_points} test samples"
    other = str(not contents.transposed).lower()
    raise MethodError(
        "scores are transposed" if fits(columns, rows) else "scores have a shape that does not fit",
        where=str(path),
        expected=f"{test} x {train}" if contents.transposed else f"{train} x {test}",
        got=f"shape {tuple(shape)}",
        remedy=f"they fit the other way round: declare transposed: {other}" if fits(columns, rows) else "score exactly the exported data",
    )


def _check_ids(where: str, ids: Ids, known: Ids, needed: Ids) -> None:
    different, counts = np.unique(ids, return_counts=True)
    faults = {
        "ids are there twice": different[counts > 1],
        "ids are of no sample of this experiment": np.setdiff1d(ids, known),
        "ids are missing": np.setdiff1d(needed, ids),
    }
    for fault, bad in faults.items():
        if len(bad):
            shown = ", ".join(map(str, bad[:5].tolist())) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            at = np.flatnonzero(np.isin(ids, bad))
            place = f", at position {int(at[-1])}" if len(at) else ""
            raise MethodError(
                fault,
                where=where + place,
                expected=f"each of the {len(needed)} ids once",
                got=shown,
                remedy="score exactly the exported data",
            )


def _places(ids: Ids, wanted: Ids) -> Ids:
    """Where each of the ``wanted`` stands among ``ids``, which hold it once."""
    order = np.argsort(ids)
    places: Ids = order[np.searchsorted(ids, wanted, sorter=order)]
    return places


def _check_finite(path: Path, phi: Array, transposed: bool, places: tuple[Ids, Ids], ids: tuple[Ids, Ids]) -> None:
    bad = ~np.isfinite(phi)
    if not bad.any():
        return
    i, j = (int(k) for k in np.argwhere(bad)[0])
    place = (int(places[0][i]), int(places[1][j]))
    row, column = place[::-1] if transposed else place
    raise NonFiniteError(
        "scores hold NaN or Inf",
        where=f"{path}, row {row}, column {column}: train id {ids[0][i]}, test id {ids[1][j]}",
        expected="finite numbers",
        got=f"{phi[i, j]}; {int(bad.sum()):,} such numbers",
        remedy="find out why the tool made them: nothing here replaces them",
    )
