from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.classes import apportion, check_classes, check_size, class_targets, rows_by_class


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=10), st.data())
def test_apportioned_rows_are_as_many_as_asked_and_in_proportion(available: list[int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, sum(available)))
    try:
        counts = apportion(available, size, "here")
    except ProblemError:
        assert any(size * count < sum(available) for count in available)  # some class deserves less than one row
        return
    assert sum(counts) == size
    for count, total in zip(counts, available, strict=True):
        assert 0 < count <= total
        assert abs(count - size * total / sum(available)) < 1


def test_apportion_without_a_size_takes_everything() -> None:
    assert apportion([3, 5], None, "here") == [3, 5]


@pytest.mark.parametrize(("available", "size", "message"), [([3, 5], 9, "fewer rows"), ([50, 1], 2, "no rows"), ([0, 0], None, "no rows")])
def test_impossible_apportionments_are_refused(available: list[int], size: int | None, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        apportion(available, size, "here")


def test_a_row_keeps_its_place_when_others_come_or_go() -> None:
    ids = np.arange(100, dtype=np.int64)
    labels = (ids % 2).astype(np.int64)
    zeros, ones = rows_by_class(labels, ids, (0, 1), "here")
    assert sorted(zeros) == list(range(0, 100, 2))
    assert list(zeros) != sorted(zeros)
    assert sorted(ones) == list(range(1, 100, 2))
    kept = ids % 3 != 0
    fewer, _ = rows_by_class(labels[kept], ids[kept], (0, 1), "here")
    assert list(fewer) == [i for i in zeros if i % 3]
    backwards, _ = rows_by_class(labels[::-1], ids[::-1], (0, 1), "here")
    assert list(backwards) == list(zeros)


def test_a_class_without_rows_is_refused() -> None:
    with pytest.raises(ProblemError, match="some of 0, 1"):
        rows_by_class(np.array([0, 1, 0]), np.arange(3), (0, 7), "here")


def test_targets_of_two_classes_are_one_for_the_second_named() -> None:
    labels = np.array([8, 3, 3, 8], dtype=np.uint8)
    assert torch.equal(class_targets(labels, (3, 8)), torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert torch.equal(class_targets(labels, (8, 3)), torch.tensor([0.0, 1.0, 1.0, 0.0]))


def test_targets_of_more_classes_are_positions() -> None:
    targets = class_targets(np.array([8, 3, 0], dtype=np.uint8), (3, 0, 8))
    assert targets.dtype == torch.int64
    assert targets.tolist() == [2, 0, 1]


@pytest.mark.parametrize("classes", [(3,), (), (3, 3), (3, -1), "38", (3, "8"), (True, False), 3, (3, 8.0)])
def test_impossible_classes_are_refused(classes: Any) -> None:
    with pytest.raises(ProblemError, match="classes"):
        check_classes(classes, "digits")


def test_classes_as_an_experiment_file_gives_them() -> None:
    assert check_classes([3, 8], "digits") == (3, 8)
    assert check_classes(None, "digits") == tuple(range(10))


@pytest.mark.parametrize("size", [0, -1, 2.5, "many", True])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ProblemError, match=r"digits\.train_size"):
        check_size(size, "digits.train_size")
