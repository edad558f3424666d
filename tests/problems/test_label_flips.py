from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.problems.label_flips import flip_labels
from genrep_dist.problems.protocol import Dataset


def labelled(targets: Tensor, first_id: int = 100) -> Dataset:
    rows = torch.arange(len(targets))
    return Dataset(rows.float().unsqueeze(1), targets, 7 * rows + first_id)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.125, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_two_classes_change_places(dtype: torch.dtype, share: float) -> None:
    data = labelled((torch.arange(100) % 2).to(dtype))
    before = data.targets.clone()
    changed, flipped = flip_labels(data, "logistic", 1, share, 3)
    assert flipped.dtype == torch.bool
    assert int(flipped.sum()) == round(share * 100)
    assert changed.targets.dtype == dtype
    assert torch.equal(changed.targets != before, flipped)
    assert set(changed.targets.tolist()) == {0, 1}
    assert torch.equal(changed.inputs, data.inputs)
    assert torch.equal(changed.ids, data.ids)
    assert torch.equal(data.targets, before)


def test_targets_as_a_column_are_flipped_too() -> None:
    flat = labelled((torch.arange(20) % 2).float())
    column = flat._replace(targets=flat.targets.unsqueeze(1))
    changed, flipped = flip_labels(column, "logistic", 1, 0.2, 0)
    expected, same = flip_labels(flat, "logistic", 1, 0.2, 0)
    assert torch.equal(changed.targets, expected.targets.unsqueeze(1))
    assert torch.equal(flipped, same)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.int32])
@pytest.mark.parametrize("num_outputs", [2, 3, 200])
def test_a_class_becomes_one_of_the_others(num_outputs: int, dtype: torch.dtype) -> None:
    data = labelled((torch.arange(400) % num_outputs).to(dtype))
    changed, flipped = flip_labels(data, "softmax", num_outputs, 0.9, 1)
    assert torch.equal(changed.targets != data.targets, flipped)
    assert changed.targets.dtype == dtype
    assert 0 <= int(changed.targets.min()) <= int(changed.targets.max()) < num_outputs


def test_the_other_classes_are_equally_likely() -> None:
    changed, flipped = flip_labels(labelled(torch.full((9000,), 2)), "softmax", 4, 8999 / 9000, 5)
    counts = torch.bincount(changed.targets[flipped], minlength=4).double()
    assert counts[2] == 0
    # Three others, 2,999.7 expected, standard deviation 45: chi-squared with two degrees of freedom, its 0.1% point.
    assert float(((counts[[0, 1, 3]] - 8999 / 3) ** 2 / (8999 / 3)).sum()) < 13.8


@given(st.permutations(list(range(30))), st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(order: list[int], seed: int) -> None:
    data = labelled(torch.arange(30) % 3)
    changed, flipped = flip_labels(data, "softmax", 3, 0.3, seed)
    moved, there = flip_labels(Dataset(*(part[order] for part in data)), "softmax", 3, 0.3, seed)
    assert torch.equal(moved.targets, changed.targets[order])
    assert torch.equal(there, flipped[order])


def test_a_larger_share_flips_the_same_samples_and_more() -> None:
    data = labelled(torch.arange(50) % 5)
    few, some = flip_labels(data, "softmax", 5, 0.1, 0)
    many, more = flip_labels(data, "softmax", 5, 0.4, 0)
    assert bool((more | ~some).all())
    assert torch.equal(few.targets[some], many.targets[some])


def test_seeds_differ() -> None:
    data = labelled((torch.arange(200) % 2).float())
    drawn = [flip_labels(data, "logistic", 1, 0.25, seed)[1] for seed in range(20)]
    assert len({tuple(flipped.tolist()) for flipped in drawn}) == 20
    # Each sample is as likely: 1,000 flips over 200 samples, none above 15 of 20.
    assert int(torch.stack(drawn).sum(dim=0).max()) < 16


@pytest.mark.parametrize(
    ("targets", "loss", "num_outputs", "says"),
    [
        (torch.linspace(0, 1, 10), "logistic", 1, "targets 0 and 1"),
        (torch.full((10,), 2), "logistic", 1, "targets 0 and 1"),
        (torch.full((10, 3), 1 / 3), "softmax", 3, "integer class numbers"),
        (torch.zeros(10), "softmax", 3, "integer class numbers"),
        (torch.full((10,), 3), "softmax", 3, "below 3"),
        (torch.full((10,), -1), "softmax", 3, "below 3"),
        (torch.zeros(10, dtype=torch.int64), "softmax", 1, "below 1"),
        (torch.zeros(10), "squared", 1, r"got: squared[\s\S]*remove problem.flip_labels"),
        (torch.zeros(10), "my own", 1, "got: my own"),
    ],
)
def test_targets_without_labels_are_refused(targets: Tensor, loss: str, num_outputs: int, says: str) -> None:
    with pytest.raises(ProblemError, match=says):
        flip_labels(labelled(targets), loss, num_outputs, 0.5, 0)


@pytest.mark.parametrize("share", [0.04, 0.96, 1.0, -0.5])
def test_no_label_or_every_label_flipped_is_refused(share: float) -> None:
    with pytest.raises(ProblemError, match="1 to 9 of 10"):
        flip_labels(labelled(torch.zeros(10)), "logistic", 1, share, 0)
