"""The contents of a score file, independent of its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genrep_dist.config.score_layouts import SCORE_LAYOUTS
from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


class Matrix(Protocol):
    """A numpy array, or an array on disk that is read where it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def take(self, indices: Ids, axis: int) -> Array: ...


@dataclass(frozen=True)
class Contents:
    """Scores as stored, (train x test), or (test x train) if ``transposed``; ids and model are None if the file has none."""

    scores: Matrix
    transposed: bool
    train_ids: Ids | None = None
    test_ids: Ids | None = None
    model: str | None = None


def is_transposed(section: ExternalSection) -> bool:
    """Whether matrices are (test x train), for files that do not say so themselves."""
    return SCORE_LAYOUTS.get(section.layout).transposed if section.transposed is None else section.transposed


def scores_name(section: ExternalSection, path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """Name of the array of scores in a file: the declared key, the layout's, 'scores', or the only matrix.

    ConfigError if the declared key is missing or no single matrix is left.
    """
    if section.key is not None and section.key not in shapes:
        raise ConfigError(
            "the file has no such array",
            where=str(path),
            expected=repr(section.key),
            got=", ".join(map(repr, shapes)) or "no arrays",
            remedy="set key to the name of the scores in the file",
        )
    for name in (section.key, SCORE_LAYOUTS.get(section.layout).key, "scores"):
        if name in shapes:
            return name
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(matrices) == 1:
        return matrices[0]
    raise ConfigError(
        "it is not clear which array of the file holds the scores",
        where=str(path),
        expected="one matrix, or an array named 'scores'",
        got=", ".join(f"{name!r} {shape}" for name, shape in shapes.items()) or "no arrays",
        remedy="set key to its name",
    )


def require_real(dtype: Any, where: str) -> None:
    """Raise MethodError unless scores of ``dtype`` are real numbers."""
    kind = np.dtype(dtype).kind
    if kind not in "fiub":
        raise MethodError(
            "scores are not real numbers",
            where=where,
            expected="floating point or integers",
            got=str(dtype),
            remedy="save their real part, or what else they mean, as float32" if kind == "c" else "save them as float32 or float64",
        )


def integer_ids(values: Any, where: str) -> Ids:
    """Ids (K,) as int64. MethodError for anything but a one-dimensional list of integers."""
    try:
        ids = np.asarray(values)
        got = f"{ids.dtype} {ids.shape}"
    except (TypeError, ValueError) as error:
        ids, got = np.empty(0), str(error)
    if ids.ndim == 1 and ids.dtype.kind in "iu":
        return ids.astype(np.int64)
    raise MethodError(
        "ids are not a list of integers",
        where=where,
        expected="integers (K,)",
        got=got,
        remedy="write the ids as they are in the export: data/train.npz, data/test.npz",
    )
