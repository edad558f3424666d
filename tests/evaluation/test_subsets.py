from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from genrep_dist.errors import NonFiniteError, PlanError, StoreError
from genrep_dist.evaluation.subsets import Array, Mask, draw_left_out, draw_subsets, noise_ceiling, spearman, subset_correlations


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def by_loop(phi: Array, removed: Mask, outputs: Array) -> tuple[list[float], list[bool]]:
    """For each test point: add up the scores of the samples that each subset keeps, and ask scipy."""
    values, constant = [], []
    for point in range(phi.shape[1]):
        predicted = [math.fsum(score for score, gone in zip(phi[:, point], row, strict=True) if not gone) for row in removed]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of constant input, and returns NaN
            value = float(spearmanr(predicted, outputs[:, point]).statistic)
        values.append(0.0 if math.isnan(value) else value)
        constant.append(math.isnan(value))
    return values, constant


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("num_train", [2, 3, 100])
def test_a_subset_keeps_its_share_and_at_least_one_and_leaves_out_at_least_one(num_train: int, fraction: float) -> None:
    removed = draw_subsets(0, num_train, 7, fraction)
    assert removed.shape == (7, num_train)
    assert removed.dtype == np.bool_
    kept = min(max(round(fraction * num_train), 1), num_train - 1)
    assert ((~removed).sum(axis=1) == kept).all()


def test_more_subsets_keep_the_first_ones() -> None:
    assert np.array_equal(draw_subsets(3, 40, 20, 0.5)[:5], draw_subsets(3, 40, 5, 0.5))
    assert np.array_equal(draw_left_out(3, 40, 40)[:5], draw_left_out(3, 40, 5))


def test_draws_differ_from_one_another_and_between_seeds() -> None:
    sets = {tuple(row) for seed in range(5) for row in draw_subsets(seed, 40, 20, 0.5)}
    assert len(sets) == 100
    assert len({tuple(row) for seed in range(20) for row in draw_left_out(seed, 1000, 1)}) > 15


def test_draws_do_not_change_with_the_version_of_this_software() -> None:
    assert (~draw_subsets(0, 8, 2, 0.5)).nonzero()[1].tolist() == [1, 3, 4, 7, 1, 2, 4, 6]
    assert draw_left_out(0, 8, 4).argmax(axis=1).tolist() == [0, 6, 4, 7]


def test_subsets_are_uniform() -> None:
    often = (~draw_subsets(1, 20, 2000, 0.25)).mean(axis=0)
    assert np.abs(often - 0.25).max() < 4 * math.sqrt(0.25 * 0.75 / 2000)


def test_each_sample_is_left_out_once() -> None:
    removed = draw_left_out(5, 30, 30)
    assert (removed.sum(axis=1) == 1).all()
    assert (removed.sum(axis=0) == 1).all()
    assert removed.argmax(axis=1).tolist() != list(range(30))


def test_impossible_draws_are_refused() -> None:
    with pytest.raises(PlanError, match="at most 5"):
        draw_left_out(0, 5, 6)
    with pytest.raises(PlanError, match="two training samples"):
        draw_subsets(0, 1, 3, 0.5)


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(2, 9), st.integers(1, 4), st.sampled_from([0.5, 100.0]))
def test_correlations_equal_a_loop_over_scipy(seed: int, num_train: int, count: int, num_test: int, scale: float) -> None:
    generator = draw(seed)
    # Small whole numbers, scaled, make ties on both sides and now and then a constant one.
    phi = np.rint(scale * generator.normal(size=(num_train, num_test)))
    outputs = np.rint(scale * generator.normal(size=(count, num_test)))
    removed = draw_subsets(seed, num_train, count, 0.5)
    values, constant = subset_correlations(phi, removed, outputs)
    expected, expected_constant = by_loop(phi, removed, outputs)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    assert constant.tolist() == expected_constant


@pytest.mark.parametrize("spread", [0, 12, 40, 200])
def test_sums_over_many_scales_rank_like_exact_ones(spread: int) -> None:
    generator = draw(spread)
    phi = generator.normal(size=(60, 3)) * 10.0 ** generator.integers(-spread, spread + 1, size=(60, 3))
    removed, outputs = draw_subsets(0, 60, 50, 0.5), generator.normal(size=(50, 3))
    # Against the negative of what is removed: the sum of what is kept is rounded elsewhere when scales differ so much.
    expected = [float(spearmanr([-math.fsum(phi[row, point]) for row in removed], outputs[:, point]).statistic) for point in range(3)]
    np.testing.assert_allclose(subset_correlations(phi, removed, outputs)[0], expected, rtol=0, atol=1e-12)


def test_the_smallest_numbers_there_are_count_too() -> None:
    phi = np.array([[3.0], [1.0], [2.0]]) * 5e-324
    assert subset_correlations(phi, np.eye(3, dtype=np.bool_), np.array([[1.0], [3.0], [2.0]]))[0] == 1


@given(st.permutations(list(range(12))), st.integers(0, 20))
def test_the_order_of_samples_and_subsets_changes_no_bit(order: list[int], seed: int) -> None:
    phi, outputs = draw(seed).normal(size=(12, 3)), draw(seed + 1).normal(size=(12, 3))
    removed = draw_subsets(seed, 12, 12, 0.5)
    values, _ = subset_correlations(phi, removed, outputs)
    assert np.array_equal(subset_correlations(phi[order], removed[:, order], outputs)[0], values)
    assert np.array_equal(subset_correlations(phi, removed[order], outputs[order])[0], values)


@given(st.integers(0, 20), st.floats(0.1, 10))
def test_only_ranks_count(seed: int, factor: float) -> None:
    phi, outputs = draw(seed).normal(size=(9, 2)), draw(seed + 1).normal(size=(15, 2))
    removed = draw_subsets(seed, 9, 15, 0.5)
    values, _ = subset_correlations(phi, removed, outputs)
    np.testing.assert_allclose(subset_correlations(phi, removed, factor * np.exp(outputs))[0], values, atol=1e-12)
    np.testing.assert_allclose(subset_correlations(8 * phi, removed, outputs)[0], values, atol=1e-12)
    np.testing.assert_allclose(subset_correlations(-phi, removed, outputs)[0], -values, atol=1e-12)


def test_a_linear_model_of_its_own_scores_is_perfect() -> None:
    phi, removed = draw().normal(size=(30, 4)), draw_subsets(0, 30, 25, 0.5)
    outputs = np.where(removed[:, :, None], 0, phi).sum(axis=1)
    assert subset_correlations(phi, removed, outputs)[0].tolist() == [1.0] * 4
    assert subset_correlations(-phi, removed, outputs)[0].tolist() == [-1.0] * 4


def test_subsets_that_leave_out_equal_scores_tie() -> None:
    # Every score comes twice, and each subset leaves out one of the two: the same numbers, added in another order.
    once = draw().normal(size=(100, 3))
    order = draw(1).permutation(100)
    first = draw(2).random((40, 100)) < 0.5
    values, constant = subset_correlations(
        np.concatenate([once, once[order]]), np.concatenate([first, ~first[:, order]], axis=1), draw(3).normal(size=(40, 3))
    )
    assert constant.all()
    assert (values == 0).all()


@pytest.mark.parametrize("score", [0.1, 1 / 3, 0.0, -7e-9])
def test_a_method_that_tells_nothing_apart_counts_as_zero_and_is_marked(score: float) -> None:
    phi = np.stack([np.full(501, score), draw().normal(size=501)], axis=1)
    removed, outputs = draw_subsets(0, 501, 40, 0.5), draw(1).normal(size=(40, 2))
    values, constant = subset_correlations(phi, removed, outputs)
    assert constant.tolist() == [True, False]
    assert values[0] == 0
    assert values[1] != 0


def test_outputs_that_never_change_count_as_zero_and_are_marked() -> None:
    phi, outputs = draw().normal(size=(9, 2)), draw(1).normal(size=(15, 2))
    outputs[:, 1] = 0.3
    values, constant = subset_correlations(phi, draw_subsets(0, 9, 15, 0.5), outputs)
    assert constant.tolist() == [False, True]
    assert values[1] == 0


def test_leaving_one_out_ranks_the_scores_themselves() -> None:
    # Beside the largest, the others differ by less than the rounding of any sum of what is kept.
    phi = np.concatenate([[[1e20]], 1 + 1e-15 * np.arange(1, 12)[:, None]])
    removed = draw_left_out(0, 12, 12)
    effect = -np.where(removed[:, :, None], phi, 0).sum(axis=1)
    assert subset_correlations(phi, removed, effect)[0] == 1


@pytest.mark.parametrize(
    ("phi", "removed", "outputs"),
    [((5, 2), (3, 4), (3, 2)), ((5, 2), (3, 5), (4, 2)), ((5, 2), (3, 5), (3, 1)), ((5,), (3, 5), (3, 2)), ((5, 2), (3, 5), (2, 3, 2))],
)
def test_shapes_that_do_not_fit_are_refused(phi: Any, removed: Any, outputs: Any) -> None:
    with pytest.raises(StoreError, match="do not fit"):
        subset_correlations(np.zeros(phi), np.zeros(removed, dtype=np.bool_), np.zeros(outputs))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    phi, removed, outputs = np.zeros((5, 2)), draw_subsets(0, 5, 3, 0.5), np.zeros((3, 2))
    phi[4, 1] = value
    with pytest.raises(NonFiniteError, match="phi, row 4, test point 1"):
        subset_correlations(phi, removed, outputs)
    outputs[2, 0] = value
    with pytest.raises(NonFiniteError, match="outputs, row 2, test point 0"):
        subset_correlations(np.zeros((5, 2)), removed, outputs)


def test_a_ceiling_needs_two_replicates() -> None:
    assert noise_ceiling(draw().normal(size=(1, 10, 3))) is None
    assert noise_ceiling(draw().normal(size=(0, 10, 3))) is None


@given(st.integers(0, 100), st.integers(2, 5))
def test_the_ceiling_is_spearman_brown_of_the_mean_of_all_pairs(seed: int, num_replicates: int) -> None:
    outputs = draw(seed).normal(size=(num_replicates, 12, 3)) + 2 * draw(seed + 1).normal(size=(12, 3))
    known = noise_ceiling(outputs)
    assert known is not None
    for point in range(3):
        pairs = [float(spearmanr(a, b).statistic) for a, b in itertools.combinations(outputs[:, :, point], 2)]
        rho = sum(pairs) / len(pairs)
        assert known[0][point] == pytest.approx(rho, abs=1e-12)
        raised = max(rho, 0)
        assert known[1][point] == pytest.approx(math.sqrt(num_replicates * raised / (1 + (num_replicates - 1) * raised)), abs=1e-12)


def test_replicates_that_agree_or_disagree_or_say_nothing() -> None:
    first = draw().normal(size=(20, 1))
    for other, expected in ((first, (1, 1)), (-first, (-1, 0)), (0 * first, (0, 0))):
        known = noise_ceiling(np.stack([first, other]))
        assert known is not None
        assert (known[0].item(), known[1].item()) == expected


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("num_replicates", [2, 5])
def test_a_perfect_predictor_reaches_the_ceiling(num_replicates: int, noise: float) -> None:
    """Gaussian truth plus Gaussian noise, where the formula is exact for Pearson correlations.

    Tolerance 0.03: Spearman's rho of Gaussian pairs is (6/pi) asin(r/2), below Pearson's r by at most 0.018; the root stretches the gap of
    the reliability by at most 1/(2 r), and the gap of the perfect predictor itself works against it. The means over 200 points of 1,000
    subsets have a standard error below 0.003.
    """
    generator = draw(num_replicates)
    truth = generator.normal(size=(1000, 200))
    outputs = truth + noise * generator.normal(size=(num_replicates, 1000, 200))
    known = noise_ceiling(outputs)
    assert known is not None
    reached, _ = spearman(truth, outputs.mean(axis=0))
    assert known[0].mean() == pytest.approx(6 / math.pi * math.asin(0.5 / (1 + noise**2)), abs=0.005)
    assert reached.mean() == pytest.approx(math.sqrt(1 / (1 + noise**2 / num_replicates)), abs=0.03)
    assert known[1].mean() == pytest.approx(reached.mean(), abs=0.03)
    # Not the ceiling of one replicate.
    assert abs(math.sqrt(known[0].mean()) - reached.mean()) > 0.03 or noise < 1


def test_ranks_are_those_of_scipy() -> None:
    left, right = np.rint(3 * draw().normal(size=(50, 8))), np.rint(3 * draw(1).normal(size=(50, 8)))
    values, constant = spearman(left, right)
    expected: list[npt.NDArray[np.float64]] = [spearmanr(a, b).statistic for a, b in zip(left.T, right.T, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14)
    assert not constant.any()
