from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.evaluation import intervals
from genrep_dist.evaluation.intervals import (
    NUM_DRAWS,
    Array,
    bootstrap_interval,
    clustered_intervals,
    expanded_levels,
    resampled_means,
    two_way_intervals,
    two_way_means,
)
from genrep_dist.seeds import derive_seed


def counts(num_units: int, purpose: str, seed: int = 0) -> Array:
    """(draws, units): how often each unit is drawn."""
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", purpose))
    return generator.multinomial(num_units, [1 / num_units] * num_units, size=NUM_DRAWS).astype(float)


def drawn(values: Array, seed: int = 0) -> Array:
    return np.concatenate(list((resampled_means if values.ndim == 2 else two_way_means)(values, seed=seed)))


def some(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(3, 1, shape)


@pytest.mark.parametrize(("num_units", "student"), [(2, 12.706205), (5, 2.776445), (10, 2.262157), (20, 2.093024), (50, 2.009575)])
def test_levels_are_hesterbergs(num_units: int, student: float) -> None:
    tail = math.erfc(student * math.sqrt(num_units / (num_units - 1)) / math.sqrt(2)) / 2  # t from printed tables
    assert expanded_levels(num_units) == pytest.approx((tail, 1 - tail), rel=1e-4)


def test_levels_tend_to_the_plain_ones() -> None:
    tails = [expanded_levels(size)[0] for size in (2, 5, 10, 20, 50, 100, 10_000)]
    assert tails == sorted(tails)
    assert [round(tail, 4) for tail in tails[1:5]] == [0.001, 0.0086, 0.0159, 0.0212]
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)


def test_resampled_means_are_means_of_drawn_seeds() -> None:
    rows = some(3, 7)
    means = drawn(rows, seed=4)
    assert means.shape == (3, NUM_DRAWS)
    for draw, times in enumerate(counts(7, "clustered", seed=4)[:200]):
        sample = [seed for seed in range(7) for _ in range(int(times[seed]))]
        assert len(sample) == 7
        for row in range(3):
            assert means[row, draw] == pytest.approx(math.fsum(rows[row, seed] for seed in sample) / 7, rel=1e-14)


def test_two_way_means_are_means_of_drawn_seeds_times_drawn_points() -> None:
    values = some(2, 4, 5)
    means = drawn(values, seed=4)
    pairs = zip(counts(4, "clustered", seed=4), counts(5, "points", seed=4), strict=True)
    for draw, (seeds, points) in zip(range(200), pairs, strict=False):
        sample = np.repeat(np.repeat(values, seeds.astype(int), axis=1), points.astype(int), axis=2)
        assert means[:, draw] == pytest.approx(sample.mean(axis=(1, 2)), rel=1e-13)


def test_intervals_are_quantiles_of_the_draws() -> None:
    rows, values = some(3, 9), some(2, 6, 4)
    low, high = expanded_levels(9)
    found = clustered_intervals(rows)
    assert found is not None
    assert found == pytest.approx(np.array([[np.quantile(row, low), np.quantile(row, high)] for row in drawn(rows)]), rel=1e-14)
    assert bootstrap_interval(rows[1]) == tuple(found[1])
    low, high = expanded_levels(4)  # the smaller of 6 seeds and 4 points
    both = two_way_intervals(values)
    assert both is not None
    assert both == pytest.approx(np.array([[np.quantile(row, low), np.quantile(row, high)] for row in drawn(values)]), rel=1e-14)


def test_two_way_variance_is_owens() -> None:
    """Of double-centred parts: seeds' over S, points' over P, and the rest over S P, each with the sample's variance (divisor n)."""
    values = some(1, 6, 5) + 2 * some(1, 6, 1)
    centred = values[0] - values.mean()
    seeds, points = centred.mean(axis=1, keepdims=True), centred.mean(axis=0, keepdims=True)
    rest = centred - seeds - points
    expected = (seeds**2).sum() / 6**2 + (points**2).sum() / 5**2 + (rest**2).sum() / 30**2
    assert drawn(values)[0].var() == pytest.approx(expected, rel=0.06)  # four standard errors of a variance of 10,000


@pytest.mark.parametrize("num_seeds", [2, 3, 4])
def test_up_to_four_seeds_the_interval_is_their_range(num_seeds: int) -> None:
    row = some(1, num_seeds)[0]
    assert bootstrap_interval(row) == pytest.approx((row.min(), row.max()), rel=1e-14)


def test_expanded_intervals_hold_the_truth_more_often_than_plain_ones() -> None:
    rows = np.random.default_rng(0).normal(size=(600, 8))
    found = clustered_intervals(rows)
    assert found is not None
    plain = np.quantile(drawn(rows), [0.025, 0.975], axis=1)
    covered = float(((found[:, 0] <= 0) & (found[:, 1] >= 0)).mean())
    assert 0.92 < covered < 0.97
    assert float(((plain[0] <= 0) & (plain[1] >= 0)).mean()) < 0.91


def test_nothing_is_known_from_one() -> None:
    assert clustered_intervals(some(3, 1)) is None
    assert bootstrap_interval(np.array([1.0])) == (None, None)
    assert two_way_intervals(some(3, 1, 5)) is None
    assert two_way_intervals(some(3, 5, 1)) is None


@pytest.mark.parametrize("value", [0.1, -1e9, 0.0])
@pytest.mark.parametrize("num_seeds", [2, 3, 7])
def test_numbers_that_agree_give_width_zero_at_their_mean(value: float, num_seeds: int) -> None:
    row = np.full(num_seeds, value)
    assert bootstrap_interval(row) == (row.mean(), row.mean())
    values = np.full((1, num_seeds, 6), value)
    found = two_way_intervals(values)
    assert found is not None
    assert found[0, 0] == found[0, 1] == values[0].mean(axis=1).mean()


def test_no_row_changes_another() -> None:
    rows, values = some(40, 11), some(9, 5, 3)
    together, both = clustered_intervals(rows), two_way_intervals(values)
    assert together is not None
    assert both is not None
    for row in range(40):
        assert tuple(together[row]) == bootstrap_interval(rows[row])
        assert tuple(together[row]) == bootstrap_interval(np.asfortranarray(rows)[row])
    for row in range(9):
        alone = two_way_intervals(values[row : row + 1])
        assert alone is not None
        assert (both[row] == alone[0]).all()


@pytest.mark.parametrize(("held", "tile"), [(20_000, 512), (90_001, 20_001), (130, 7)])
def test_no_number_depends_on_how_much_is_held(held: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, values = some(5, 13), some(3, 4, 6)
    before = drawn(rows), drawn(values)
    monkeypatch.setattr(intervals, "_MAX_HELD", held)
    monkeypatch.setattr(intervals, "_TILE", tile)
    monkeypatch.setattr(intervals, "NUM_DRAWS", NUM_DRAWS if held > 1000 else 300)
    assert (drawn(rows) == before[0][:, : intervals.NUM_DRAWS]).all()
    assert (drawn(values) == before[1][:, : intervals.NUM_DRAWS]).all()


def test_a_block_holds_no_more_than_it_may() -> None:
    sizes = [block.size for block in resampled_means(some(1001, 3))]
    assert sum(sizes) == 1001 * NUM_DRAWS
    assert max(sizes) <= 4_000_000


def test_many_seeds_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    whole = intervals._weighted_means

    def watched(rows: Array, weights: Array) -> Array:
        held.append(weights.size)
        return whole(rows, weights)

    monkeypatch.setattr(intervals, "_weighted_means", watched)
    drawn(some(1, 900))
    assert sum(held) == 900 * NUM_DRAWS
    assert max(held) <= 4_000_000


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(2, 5), st.floats(-100, 100, width=32), st.sampled_from([-2.0, -0.5, 0.25, 4.0]), st.integers(0, 99))
def test_the_two_way_interval_moves_with_its_data(num_seeds: int, num_points: int, shift: float, scale: float, start: int) -> None:
    values = np.random.default_rng(start).normal(size=(1, num_seeds, num_points))
    found, moved = two_way_intervals(values), two_way_intervals(scale * values + shift)
    assert found is not None
    assert moved is not None
    assert values.min() - 1e-9 <= found[0, 0] <= found[0, 1] <= values.max() + 1e-9
    assert moved[0] == pytest.approx(np.sort(scale * found[0] + shift), rel=1e-6, abs=1e-6)
