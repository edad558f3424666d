"""The classes, rows and targets of the shipped classification problems, and the options that the problems share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe, Schedule
from genrep_dist.seeds import derive_seed

Ids = npt.NDArray[np.int64]

SPLIT_SEED = 0
"""Default seed of the choice of rows, which belongs to the problem: it is the same for all experiments and their seeds."""


def check_classes(
    classes: Sequence[Any] | None, where: str, known: Sequence[str] = (), all_classes: Sequence[Any] = tuple(range(10))
) -> tuple[Any, ...]:
    """The declared classes, or ``all_classes`` for None.

    ProblemError unless they are at least two different names of ``known``; without ``known``, class numbers.
    """
    if classes is None:
        return tuple(all_classes)

    def valid(one: object) -> bool:
        return one in known if known else isinstance(one, int) and not isinstance(one, bool) and one >= 0

    # Options of an experiment file may have any type.
    listed = tuple(classes) if isinstance(classes, (list, tuple)) else ()
    if len(listed) < 2 or not all(map(valid, listed)) or len(set(listed)) != len(listed):
        kind = f"of {', '.join(known)}" if known else "class numbers"
        raise ProblemError(
            "the classes are not valid",
            where=f"{where}.classes",
            expected=f"two or more different {kind}, or null for all {len(all_classes)}",
            got=repr(classes),
        )
    return listed


def check_size(size: int | None, where: str) -> int | None:
    """A declared number of rows, or None. ProblemError unless it is an integer of at least 1."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ProblemError("a number of rows is not valid", where=where, expected="an integer of at least 1, or null", got=repr(size))
    return size


def check_seed(seed: int, where: str) -> int:
    """A declared seed. ProblemError unless it is an integer of at least 0."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ProblemError("a seed is not valid", where=where, expected="an integer of at least 0", got=repr(seed))
    return seed


def num_logits(classes: Sequence[object]) -> int:
    """C: 1 for two classes, else the number of classes."""
    return 1 if len(classes) == 2 else len(classes)


def loss_name(classes: Sequence[object]) -> str:
    """'logistic' for two classes, else 'softmax'."""
    return "logistic" if len(classes) == 2 else "softmax"


def class_targets(labels: npt.NDArray[np.integer], classes: Sequence[int]) -> Tensor:
    """Targets (N,): for two classes float32, 1.0 for ``classes[1]`` and 0.0 for ``classes[0]``; else int64 positions in ``classes``."""
    if len(classes) == 2:
        return torch.from_numpy((labels == classes[1]).astype(np.float32))
    positions = np.full(max(classes) + 1, -1, dtype=np.int64)
    positions[list(classes)] = np.arange(len(classes))
    return torch.from_numpy(positions[labels])


def rows_by_class(labels: npt.NDArray[np.integer], ids: Ids, classes: Sequence[int], where: str, seed: int = SPLIT_SEED) -> list[Ids]:
    """For each class the ``ids`` of its rows, in a fixed pseudo-random order.

    The order depends on ``seed`` and the ids only, not on a library's generator. The first k rows are a subsample without
    replacement, and a larger subsample contains a smaller one. ProblemError if a class has no row.
    """
    found: list[Ids] = []
    for number in classes:
        members = [int(i) for i in ids[labels == number]]
        if not members:
            present = ", ".join(str(label) for label in np.unique(labels))
            raise ProblemError("a class has no rows", where=f"{where}.classes", expected=f"some of {present}", got=str(number))
        found.append(np.array(sorted(members, key=lambda i: derive_seed(seed, "subsample", i)), dtype=np.int64))
    return found


def apportion(available: Sequence[int], size: int | None, where: str) -> list[int]:
    """The number of rows of each class, of ``size`` rows with the class proportions of ``available``. None: all rows.

    By the largest remainder method, ties to the first class: the counts sum to ``size`` and none exceeds what is available.
    ProblemError if there are fewer rows, or if a class would get none.
    """
    total = sum(available)
    if size is None:
        size = total
    if size > total:
        raise ProblemError("there are fewer rows", where=where, expected=f"at most {total}", got=str(size))
    quotas = [size * count // total if total else 0 for count in available]
    remainders = [size * count % total if total else 0 for count in available]
    by_remainder = sorted(range(len(available)), key=lambda index: (-remainders[index], index))
    for index in by_remainder[: size - sum(quotas)]:
        quotas[index] += 1
    if min(quotas) == 0:
        raise ProblemError(
            "a class would have no rows", where=where, expected=f"enough rows for {len(available)} classes", got=f"{size} rows of {total}"
        )
    return quotas


@dataclass(eq=False)
class ClassificationProblem(ABC):
    """Options that shipped problems share.

    At most ``per_class`` training rows and ``test_per_class`` test rows of each class are used (None: no limit). Of these,
    ``train_size`` and ``test_size`` rows are drawn with the class proportions by ``split_seed`` (None: all). The remaining options
    are those of the recipe. ProblemError for options that are not valid.
    """

    train_size: int | None = None
    test_size: int | None = None
    per_class: int | None = 6000
    test_per_class: int | None = None
    split_seed: int = SPLIT_SEED
    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 0.1
    schedule: Schedule = "constant"

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for option in ("train_size", "test_size", "per_class", "test_per_class"):
            check_size(getattr(self, option), f"{self.name}.{option}")
        check_seed(self.split_seed, f"{self.name}.split_seed")
        self.class_list = self._check_classes()
        self.loss: str | Loss = loss_name(self.class_list)
        self.recipe = Recipe(self.epochs, self.batch_size, self.learning_rate, self.schedule)

    def train_data(self) -> Dataset:
        return self._dataset(test=False)

    def test_data(self) -> Dataset:
        return self._dataset(test=True)

    @abstractmethod
    def _check_classes(self) -> tuple[Any, ...]:
        """The classes in the order of their logits: numbers, or names."""

    @abstractmethod
    def _dataset(self, *, test: bool) -> Dataset: ...

    def _choose_rows(self, labels: npt.NDArray[np.integer], ids: Ids, classes: Sequence[int], *, test: bool) -> tuple[Ids, Ids]:
        """(candidates, chosen) ids of rows with one of ``classes``, both ascending: at most per_class rows of each; ``size`` of those."""
        per_class, size, option = (
            (self.test_per_class, self.test_size, "test_size") if test else (self.per_class, self.train_size, "train_size")
        )
        groups = [group[:per_class] for group in rows_by_class(labels, ids, classes, self.name, self.split_seed)]
        counts = apportion([len(group) for group in groups], size, f"{self.name}.{option}")
        chosen = [group[:count] for group, count in zip(groups, counts, strict=True)]
        return np.sort(np.concatenate(groups)), np.sort(np.concatenate(chosen))
