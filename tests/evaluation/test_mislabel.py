from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA, metric_infos
from genrep_dist.evaluation.metrics.mislabel import inspection_curve, mislabel_points

Scores = npt.NDArray[np.float64]


def example(seed: int, size: int, wrong: int, *, ties: bool) -> tuple[Scores, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=size)
    flipped = draw.permutation(size) < wrong
    return np.rint(scores) if ties else scores, flipped, draw.permutation(10 * size)[:size].astype(np.int64)


def auroc_by_loop(scores: Scores, flipped: npt.NDArray[np.bool_]) -> float:
    """Every flipped sample against every unflipped one; ties half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[flipped] for b in scores[~flipped]]
    return float(sum(pairs) / len(pairs))


def curve_by_loop(scores: Scores, flipped: npt.NDArray[np.bool_], ids: npt.NDArray[np.int64]) -> list[tuple[float, float]]:
    """Look at one sample after the other."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], ids[row]))
    points, found = [(0.0, 0.0)], 0
    for looked, row in enumerate(order, start=1):
        found += bool(flipped[row])
        points.append((looked / len(scores), found / int(flipped.sum())))
    return points


def metrics(scores: Scores, flipped: npt.NDArray[np.bool_], ids: npt.NDArray[np.int64]) -> tuple[float, float]:
    points = mislabel_points({("a", 0): scores}, flipped, ids)
    assert points["metric"].to_list() == ["mislabel_auroc", "mislabel_inspection_area"]
    auroc, area = points["value"].to_list()
    return auroc, area


@given(st.integers(0, 500), st.integers(2, 30), st.booleans(), st.data())
def test_curve_and_auroc_equal_plain_loops(seed: int, size: int, ties: bool, data: st.DataObject) -> None:
    scores, flipped, ids = example(seed, size, data.draw(st.integers(1, size - 1)), ties=ties)
    curve = inspection_curve(scores, flipped, ids)
    expected = curve_by_loop(scores, flipped, ids)
    assert curve.rows() == expected
    auroc, area = metrics(scores, flipped, ids)
    assert auroc == pytest.approx(auroc_by_loop(scores, flipped), abs=1e-12)
    steps = itertools.pairwise(expected)
    assert area == pytest.approx(math.fsum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in steps), abs=1e-12)


@given(st.integers(0, 500), st.integers(2, 60), st.data())
def test_without_ties_the_area_is_a_straight_line_in_auroc(seed: int, size: int, data: st.DataObject) -> None:
    """A flipped sample at rank r adds (N - r + 1/2) / (N F) to the area; sum_r (N - r) counts the F U AUROC pairs in the right order and
    the F (F - 1) / 2 pairs of flipped ones. Hence area = (U AUROC + F/2) / N = (1 - p) AUROC + p/2, p = F/N."""
    wrong = data.draw(st.integers(1, size - 1))
    scores, flipped, ids = example(seed, size, wrong, ties=False)
    auroc, area = metrics(scores, flipped, ids)
    share = wrong / size
    assert area == pytest.approx((1 - share) * auroc + share / 2, abs=1e-12)


def test_perfect_and_hopeless_scores() -> None:
    _, flipped, ids = example(0, 50, 5, ties=False)
    assert metrics(np.where(flipped, 1.0, 0.0), flipped, ids) == pytest.approx((1, 0.95))
    assert metrics(np.where(flipped, 0.0, 1.0), flipped, ids) == pytest.approx((0, 0.05))


def test_equal_scores_are_looked_at_by_id() -> None:
    flipped = np.array([True, False, False, True])
    ids = np.array([9, 3, 5, 1])
    curve = inspection_curve(np.zeros(4), flipped, ids)
    assert curve["found"].to_list() == [0, 0.5, 0.5, 0.5, 1]
    # Minus zero is zero.
    assert inspection_curve(np.array([0.0, -0.0, 0.0, -0.0]), flipped, ids).equals(curve)
    assert metrics(np.zeros(4), flipped, ids)[0] == 0.5


@given(st.permutations(list(range(15))), st.booleans())
def test_the_order_of_rows_does_not_matter(order: list[int], ties: bool) -> None:
    scores, flipped, ids = example(3, 15, 4, ties=ties)
    assert inspection_curve(scores[order], flipped[order], ids[order]).equals(inspection_curve(scores, flipped, ids))
    assert metrics(scores[order], flipped[order], ids[order]) == metrics(scores, flipped, ids)


def test_points_of_several_methods_and_seeds_are_sorted() -> None:
    _, flipped, ids = example(0, 20, 3, ties=False)
    found = {(method, seed): example(seed, 20, 3, ties=False)[0] for seed in (5, 2) for method in ("b", "a")}
    points = mislabel_points(found, flipped, ids)
    assert dict(points.schema) == POINTS_SCHEMA
    assert points.select("metric", "method", "seed").rows() == [
        (metric, method, seed) for metric in ("mislabel_auroc", "mislabel_inspection_area") for method in ("a", "b") for seed in (2, 5)
    ]
    assert set(points["metric"]) <= set(metric_infos())
    assert points["test_id"].null_count() == points.height
    assert points.filter(pl.col("seed") == 5, pl.col("method") == "a")["value"].to_list() == list(metrics(found["a", 5], flipped, ids))
    assert mislabel_points({}, flipped, ids).equals(pl.DataFrame(schema=POINTS_SCHEMA))


@pytest.mark.parametrize(
    ("scores", "flipped", "ids"),
    [
        (np.zeros(3), [False] * 3, [0, 1, 2]),
        (np.zeros(3), [True] * 3, [0, 1, 2]),
        (np.zeros(4), [True, False, False], [0, 1, 2]),
        (np.zeros(3), [True, False, False], [0, 1]),
        (np.zeros((3, 1)), [[True], [False], [False]], [[0], [1], [2]]),
    ],
)
def test_what_does_not_fit_is_refused(scores: Any, flipped: Any, ids: Any) -> None:
    with pytest.raises(StoreError, match="do not fit"):
        mislabel_points({("a", 0): scores}, np.array(flipped), np.array(ids))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused_by_id(value: float) -> None:
    scores, flipped, ids = example(0, 20, 3, ties=False)
    scores[[4, 7]] = value
    with pytest.raises(NonFiniteError, match=rf"2 training samples, ids \[{min(ids[[4, 7]])}, {max(ids[[4, 7]])}\]"):
        inspection_curve(scores, flipped, ids)
