"""What a file of scores holds, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.config.score_layouts import score_layout

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]


class Matrix(Protocol):
    """A numpy array, or one on disk that is read where it is taken from."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def take(self, indices: Ids, axis: int) -> Array: ...


@dataclass(frozen=True)
class Contents:
    """Scores as they lie in a file, (train x test), or (test x train) where ``transposed``; ids and model as far as it holds them."""

    scores: Matrix
    transposed: bool
    train_ids: Ids | None = None
    test_ids: Ids | None = None
    model: str | None = None


@dataclass(frozen=True)
class Declared:
    """What the experiment says of the files: names in them, and their direction. None where it says nothing."""

    key: str | None
    train_ids: str | None
    test_ids: str | None
    transposed: bool | None
    layout: str

    @classmethod
    def of(cls, section: ExternalSection) -> Declared:
        return cls(section.key, section.train_ids, section.test_ids, section.transposed, section.layout)

    @property
    def direction(self) -> bool:
        """Whether matrices are (test x train), where the file does not say it."""
        return score_layout(self.layout).transposed if self.transposed is None else self.transposed

    def array_name(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
        """Which of a file's arrays holds the scores: the declared one, the layout's, 'scores', or the only matrix there is."""
        for name in (self.key, score_layout(self.layout).key, "scores"):
            if name in shapes:
                return name
            if name is not None and name == self.key:
                raise ConfigError(
                    "the file has no such array",
                    where=str(path),
                    expected=repr(name),
                    got=", ".join(map(repr, shapes)) or "no arrays",
                    remedy="declare as key the name that the scores have in it",
                )
        matrices = [name for name, shape in shapes.items() if len(shape) == 2]
        if len(matrices) == 1:
            return matrices[0]
        raise ConfigError(
            "which array of the file holds the scores?",
            where=str(path),
            expected="one matrix, or one that is called 'scores'",
            got=", ".join(f"{name!r} {shape}" for name, shape in shapes.items()) or "no arrays",
            remedy="declare its name as key",
        )


def integer_ids(values: Any, where: str) -> Ids:
    """Ids (K,) int64. MethodError for anything but whole numbers in one dimension."""
    remedy = "write the ids as they stand in the export: data/train.npz, data/test.npz"
    try:
        ids = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise MethodError(
            "ids are no list of whole numbers", where=where, expected="integers (K,)", got=str(error), remedy=remedy
        ) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise MethodError(
            "ids are no list of whole numbers", where=where, expected="integers (K,)", got=f"{ids.dtype} {ids.shape}", remedy=remedy
        )
    return ids.astype(np.int64)
