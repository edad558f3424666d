from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.errors import NotCommittedError, StoreError
from genrep_dist.evaluation.metrics.deletion import auc_points
from genrep_dist.evaluation.statistics import comparisons
from genrep_dist.paper.claims import Claim, check_claim, combined_status
from tests.evaluation.examples import synthetic_deletion


def points(values: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """Areas (seeds, points) by method, as one table."""
    rows = [
        (method, seed, 100 * seed + point, float(areas[seed, point]))
        for method, areas in values.items()
        for seed, point in itertools.product(*(range(size) for size in areas.shape))
    ]
    return pl.DataFrame(rows, schema=["method", "seed", "test_id", "value"], orient="row")


def areas(mean: float, noise: float, num_seeds: int = 8, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(0, 5, (num_seeds, 3))
    return mean + shared + generator.normal(0, noise, (num_seeds, 3))


def test_the_mean_and_interval_are_those_of_the_paired_difference() -> None:
    deletion = synthetic_deletion()
    names = deletion["method"].unique().sort().to_list()[:2]
    measured = auc_points(deletion).filter(pl.col("metric") == "auc_del_negative")
    expected = comparisons(measured, [names[0]], [names[1]]).row(0, named=True)
    found = check_claim(measured, Claim(names[0], names[1]))
    assert (found.mean, found.low, found.high) == pytest.approx((expected["mean"], expected["ci95_low"], expected["ci95_high"]), rel=1e-12)
    assert found.num_seeds == expected["num_seeds"]


def test_what_networks_share_does_not_blur_a_claim() -> None:
    """Both methods rise and fall with the network by far more than they differ."""
    table = points({"a": areas(2.0, 0.1, seed=1), "b": areas(1.0, 0.1, seed=2)})
    assert check_claim(table, Claim("a", "b")).status == "confirmed"
    assert check_claim(table, Claim("b", "a")).status == "refuted"
    noisy = points({"a": areas(2.0, 9.0, seed=1), "b": areas(1.9, 9.0, seed=2)})
    assert check_claim(noisy, Claim("a", "b")).status == "undecided"


def test_the_number_of_networks_decides_four_times_in_five() -> None:
    """By repetition: with that many networks the interval excludes zero in about 80 % of the draws."""
    generator = np.random.default_rng(3)
    measured = generator.normal(0.5, 1.0, (12, 1))
    measured = 0.5 + (measured - measured.mean()) / measured.std(ddof=1)
    needed = check_claim(points({"a": measured, "b": np.zeros((12, 1))}), Claim("a", "b")).seeds_to_decide
    assert needed == 32  # (1.96 + 0.84)^2 / 0.5^2
    draws = generator.normal(0.5, 1.0, (4000, needed))
    decided = draws.mean(axis=1) > 1.959964 * draws.std(axis=1, ddof=1) / np.sqrt(needed)
    assert 0.76 < decided.mean() < 0.84
    assert check_claim(points({"a": measured[:4], "b": np.zeros((4, 1))}), Claim("a", "b")).seeds_to_decide is None
    assert check_claim(points({"a": np.zeros((8, 1)), "b": np.zeros((8, 1))}), Claim("a", "b")).seeds_to_decide is None


def test_a_share_of_the_other_is_asked() -> None:
    flat = {"a": np.full((6, 2), 0.9), "b": np.full((6, 2), 1.0)}
    assert check_claim(points(flat), Claim("a", "b")).status == "refuted"
    found = check_claim(points(flat), Claim("a", "b", share=0.8))
    assert found.status == "confirmed"
    assert found.mean == pytest.approx(0.1)


def test_equal_methods_are_no_worse_and_no_better() -> None:
    same = points({"a": areas(1.0, 1.0), "b": areas(1.0, 1.0)})
    assert check_claim(same, Claim("a", "b")).status == "confirmed"
    assert check_claim(same, Claim("a", "b", strict=True)).status == "refuted"


@pytest.mark.parametrize(("num_seeds", "verdict"), [(1, "undecided"), (4, "undecided"), (5, "confirmed")])
def test_few_networks_decide_nothing(num_seeds: int, verdict: str) -> None:
    table = points({"a": np.full((num_seeds, 3), 2.0), "b": np.full((num_seeds, 3), 1.0)})
    found = check_claim(table, Claim("a", "b"))
    assert (found.status, found.num_seeds, found.num_points) == (verdict, num_seeds, 3 * num_seeds)
    assert (found.low is None) == (num_seeds == 1)


@given(order=st.permutations(range(24)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    table = points({"a": areas(2.0, 1.0, num_seeds=4), "b": areas(1.0, 1.0, num_seeds=4, seed=3)})
    assert check_claim(table[order], Claim("a", "b")) == check_claim(table, Claim("a", "b"))


def test_what_was_not_measured_or_not_alike_is_refused() -> None:
    table = points({"a": areas(2.0, 1.0), "b": areas(1.0, 1.0, seed=3)})
    with pytest.raises(NotCommittedError, match="not measured"):
        check_claim(table, Claim("a", "c"))
    with pytest.raises(StoreError, match="same seeds and test points"):
        check_claim(table.filter((pl.col("method") == "a") | (pl.col("seed") > 0)), Claim("a", "b"))


def test_several_comparisons_make_one_verdict() -> None:
    assert combined_status(["confirmed", "confirmed"]) == "confirmed"
    assert combined_status(["confirmed", "undecided"]) == "undecided"
    assert combined_status(["confirmed", "refuted", "undecided"]) == "refuted"
    assert combined_status([]) == "undecided"
