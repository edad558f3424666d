"""Which classes a classification problem keeps, which of their rows, and what its targets are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.seeds import derive_seed

Ids = npt.NDArray[np.int64]

ALL_TEN = tuple(range(10))

SPLIT_SEED = 0
"""Which rows a problem uses is a property of the problem, the same in every experiment and for every experiment seed."""


def check_classes(classes: Sequence[int] | None, where: str) -> tuple[int, ...]:
    """The declared classes, or all ten for None. ProblemError unless they are at least two different class numbers."""
    if classes is None:
        return ALL_TEN
    # What an experiment file says may be of any type.
    listed: tuple[object, ...] = tuple(classes) if isinstance(classes, (list, tuple)) else ()
    numbers = tuple(number for number in listed if isinstance(number, int) and not isinstance(number, bool) and number >= 0)
    if len(numbers) != len(listed) or len(numbers) < 2 or len(set(numbers)) != len(numbers):
        raise ProblemError(
            "the classes cannot be told apart",
            where=f"{where}.classes",
            expected="two or more different class numbers, or null for all ten",
            got=repr(classes),
        )
    return numbers


def check_size(size: int | None, where: str) -> int | None:
    """A declared number of rows, or None. ProblemError unless it is a whole number of 1 or more."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ProblemError("a number of rows is impossible", where=where, expected="a whole number above 0, or null", got=repr(size))
    return size


def check_seed(seed: int, where: str) -> int:
    """A declared seed. ProblemError unless it is a whole number of 0 or more."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ProblemError("a seed is impossible", where=where, expected="a whole number, 0 or more", got=repr(seed))
    return seed


def num_logits(classes: Sequence[int]) -> int:
    """C: one logit for two classes, else one for each class."""
    return 1 if len(classes) == 2 else len(classes)


def loss_name(classes: Sequence[int]) -> str:
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

    A row's place follows from ``seed`` and its id alone, so that the first k rows are a subsample without replacement, a larger subsample
    contains a smaller one, and neither depends on a library's generator. ProblemError when a class has no row.
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
    """How many rows of each class make ``size`` rows with the classes' own proportions; all of them for None.

    Largest remainders, ties to the first class: the counts sum to ``size`` and none exceeds what is available. ProblemError
    when there are not so many rows, or when a class would get none.
    """
    total = sum(available)
    if size is None:
        size = total
    if size > total:
        raise ProblemError("there are not so many rows", where=where, expected=f"at most {total}", got=str(size))
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
