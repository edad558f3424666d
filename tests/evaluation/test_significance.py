from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genrep_dist.evaluation import significance
from genrep_dist.evaluation.intervals import Array
from genrep_dist.evaluation.significance import NUM_FLIPS, fewest_seeds, holm, sign_flip_p_values, smallest_p


def p_by_loop(row: list[float]) -> float:
    """Twice the share of all patterns of signs that reach as far as the real one."""
    real = math.fsum(row)
    sums = [math.fsum(sign * value for sign, value in zip(signs, row, strict=True)) for signs in product((1, -1), repeat=len(row))]
    return min(1.0, 2 * min(sum(s >= real for s in sums), sum(s <= real for s in sums)) / len(sums))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=8))
def test_p_is_that_of_all_patterns_of_signs(row: list[float]) -> None:
    """Small whole numbers: sums are exact, and ties are many."""
    assert sign_flip_p_values(np.array([row]))[0] == pytest.approx(p_by_loop(row), rel=1e-12)


def test_p_of_any_numbers() -> None:
    rows = np.random.default_rng(1).normal(0.3, 1, (20, 9))
    assert sign_flip_p_values(rows) == pytest.approx([p_by_loop(row) for row in rows.tolist()], rel=1e-12)


@pytest.mark.parametrize("num_seeds", [2, 5, 10, 15])
def test_the_smallest_p_is_two_patterns_of_all(num_seeds: int) -> None:
    rows = np.stack([np.linspace(1, 2, num_seeds), -np.linspace(1, 2, num_seeds)])
    assert sign_flip_p_values(rows) == pytest.approx([2 / 2**num_seeds] * 2, rel=1e-12)
    assert holm(sign_flip_p_values(rows)).min() == pytest.approx(smallest_p(num_seeds, 2), rel=1e-12)


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (3, 7), (7, 9), (2000, None)])
def test_the_fewest_seeds_that_can_be_significant(comparisons: int, seeds: int | None) -> None:
    assert fewest_seeds(comparisons) == seeds
    if seeds is not None:
        assert smallest_p(seeds, comparisons) <= 0.05 < smallest_p(seeds - 1, comparisons)


def test_the_smallest_p_of_many_seeds() -> None:
    assert sign_flip_p_values(np.linspace(1, 2, 40)[None]) == pytest.approx([2 / (NUM_FLIPS + 1)])


def test_no_difference_has_p_one() -> None:
    assert sign_flip_p_values(np.zeros((2, 6))).tolist() == [1, 1]
    assert sign_flip_p_values(np.zeros((1, 30))).tolist() == [1]


def test_random_patterns_come_near_all_patterns() -> None:
    row = np.random.default_rng(3).normal(0.7, 1, 17)
    signs = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = 2 * float((signs @ row >= row.sum() - 1e-9).mean())
    found = float(sign_flip_p_values(row[None])[0])
    assert 0.02 < exact < 0.5
    assert found == pytest.approx(exact, abs=4 * 2 * math.sqrt(exact / 2 / NUM_FLIPS))
    assert found != exact
    assert found != sign_flip_p_values(row[None], seed=1)[0]


@pytest.mark.parametrize("num_seeds", [6, 18])
def test_no_row_changes_another(num_seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "NUM_FLIPS", 999)
    rows = np.random.default_rng(2).normal(0.2, 1, (35, num_seeds))
    assert sign_flip_p_values(rows).tolist() == [float(sign_flip_p_values(row[None])[0]) for row in rows]


def test_the_test_keeps_its_level() -> None:
    rows = np.random.default_rng(5).normal(size=(800, 8))
    p_values = sign_flip_p_values(rows)
    for level in (0.05, 0.2, 0.5):
        assert float((p_values <= level).mean()) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 800) + 2 / 2**8)


def holm_by_loop(p_values: list[float]) -> list[float]:
    """As it is told: go up from the smallest; multiply by how many are left."""
    corrected = [0.0] * len(p_values)
    left, largest = list(range(len(p_values))), 0.0
    while left:
        smallest = min(left, key=lambda index: p_values[index])
        largest = max(largest, min(1.0, len(left) * p_values[smallest]))
        corrected[smallest] = largest
        left.remove(smallest)
    return corrected


def test_holm_of_known_numbers() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.01, 0.02, 0.03, 0.04, 0.05])) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm(np.array([0.7, 0.6])).tolist() == [1, 1]
    assert holm(np.array([0.03])).tolist() == [0.03]
    assert holm(np.empty(0)).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.2, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=9))
def test_holm_equals_a_plain_loop_in_any_order(p_values: list[float]) -> None:
    values: Array = np.array(p_values)
    found = holm(values)
    assert found.tolist() == pytest.approx(holm_by_loop(p_values), rel=1e-12)
    assert (found >= values).all()
    assert (found <= np.minimum(1, len(values) * values)).all()
    order = np.random.default_rng(len(p_values)).permutation(len(p_values))
    assert (holm(values[order]) == found[order]).all()


@pytest.mark.parametrize("num_seeds", [2, 3, 7, 8, 11])
def test_all_patterns_give_the_bits_of_scipy(num_seeds: int) -> None:
    """Also where patterns tie, and where a mean is zero but for rounding."""
    rows = np.random.default_rng(num_seeds).normal(size=(12, num_seeds))
    rows[4:8] = rows[4:8].round(1)
    rows[8:] -= rows[8:].mean(axis=1, keepdims=True)
    found = stats.permutation_test(
        (rows,), lambda values, axis: values.mean(axis), permutation_type="samples", vectorized=True, n_resamples=NUM_FLIPS, axis=1
    )
    assert np.array_equal(sign_flip_p_values(rows), found.pvalue)
