from __future__ import annotations

import statistics as plain
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.intervals import bootstrap_interval, pooled_half_width, two_way_intervals
from genrep_dist.evaluation.significance import holm
from genrep_dist.evaluation.statistics import (
    against_simple,
    best,
    comparisons,
    metrics_table,
    ranks,
)
from genrep_dist.evaluation.tables import table_specs
from genrep_dist.seeds import derive_seed
from tests.evaluation.points import synthetic_points

NAMES = ["middle", "strong", "weak"]
TABLES: dict[str, Callable[..., pl.DataFrame]] = {
    "metrics": metrics_table,
    "comparisons": lambda points, methods, **rest: comparisons(points, methods, ["weak", "strong"], **rest),
    "ranks": ranks,
    "best": best,
}


def by_loop(points: pl.DataFrame, metric: str, method: str) -> dict[int, list[float]]:
    """seed -> value of each test point."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in points.sort("seed", "test_id").iter_rows(named=True):
        if (row["metric"], row["method"]) == (metric, method):
            values[row["seed"]].append(row["value"])
    return values


def resamples(num_seeds: int, seed: int = 0) -> list[list[int]]:
    """The draws that all methods share, as lists of positions."""
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", "clustered"))
    counts = generator.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=10_000)
    return [[position for position, times in enumerate(row) for _ in range(times)] for row in counts.tolist()]


def several() -> pl.DataFrame:
    """Metrics of both directions, with and without test points."""
    with_points = synthetic_points(metrics=("brittleness_removed", "auc_del_negative"))
    return pl.concat([synthetic_points(num_points=None, metrics=("mislabel_auroc",)), with_points])


def test_metrics_equal_a_plain_loop() -> None:
    points = several()
    found = metrics_table(points, NAMES)
    expected = [(metric, method) for metric in ("auc_del_negative", "brittleness_removed", "mislabel_auroc") for method in NAMES]
    assert found.select("metric", "method").rows() == expected  # in the order of the registry, not of the alphabet or the rows
    for row in found.iter_rows(named=True):
        values = by_loop(points, row["metric"], row["method"])
        flat = [value for seed in values.values() for value in seed]
        assert row["mean"] == pytest.approx(plain.fmean(flat), rel=1e-12)
        assert row["ci95_pooled"] == pytest.approx(1.96 * plain.stdev(flat) / len(flat) ** 0.5, rel=1e-12)
        ends = bootstrap_interval(np.array([plain.fmean(seed) for seed in values.values()]))
        assert (row["ci95_clustered_low"], row["ci95_clustered_high"]) == pytest.approx(ends, rel=1e-12)
        assert (row["ci95_two_way_low"], row["ci95_two_way_high"]) == (None, None)
        assert (row["num_seeds"], row["num_points"]) == (6, 1 if row["metric"] == "mislabel_auroc" else 3)


def test_two_way_intervals_stand_where_the_design_is_crossed() -> None:
    points = synthetic_points(num_seeds=5, num_points=4, crossed=True)
    for row in metrics_table(points, NAMES).iter_rows(named=True):
        values = np.array(list(by_loop(points, "auc_del_negative", row["method"]).values()))
        expected = two_way_intervals(values[None])
        assert expected is not None
        assert (row["ci95_two_way_low"], row["ci95_two_way_high"]) == tuple(expected[0])
        assert row["ci95_two_way_high"] - row["ci95_two_way_low"] > row["ci95_clustered_high"] - row["ci95_clustered_low"]
        assert row["ci95_pooled"] == pooled_half_width(values)
    moved = points.with_columns(test_id=pl.col("test_id") + pl.when((pl.col("seed") == 2) & (pl.col("test_id") == 30)).then(1).otherwise(0))
    assert metrics_table(moved, NAMES)["ci95_two_way_low"].null_count() == 3
    assert (
        metrics_table(moved, NAMES)
        .drop(pl.selectors.contains("two_way"))
        .equals(metrics_table(points, NAMES).drop(pl.selectors.contains("two_way")))
    )


def test_comparisons_equal_a_plain_loop() -> None:
    points = several()
    found = comparisons(points, NAMES, ["weak", "strong"], seed=2)
    # The two baselines are one pair.
    pairs = [("middle", "weak"), ("middle", "strong"), ("weak", "strong")]
    assert found.select("method", "baseline").rows() == pairs * 3
    for row in found.iter_rows(named=True):
        first, second = (by_loop(points, row["metric"], row[name]) for name in ("method", "baseline"))
        per_seed = [plain.fmean(a - b for a, b in zip(first[seed], second[seed], strict=True)) for seed in range(6)]
        assert row["mean"] == pytest.approx(plain.fmean(per_seed), rel=1e-12)
        assert (row["ci95_low"], row["ci95_high"]) == pytest.approx(bootstrap_interval(np.array(per_seed), seed=2), rel=1e-9)
        flipped = [sum(s * d for s, d in zip(signs, per_seed, strict=True)) for signs in product((1, -1), repeat=6)]
        extreme = sum(abs(value) >= abs(sum(per_seed)) - 1e-12 for value in flipped)
        assert row["p_value"] == pytest.approx(extreme / 64, rel=1e-12)
        assert (row["num_seeds"], row["num_points"]) == (6, 1 if row["metric"] == "mislabel_auroc" else 3)
    for rows in found.partition_by("metric"):
        ordered = sorted(zip(rows["p_value"], rows["p_holm"], strict=True))
        running = [max(min(1.0, (3 - k) * p) for k, (p, _) in enumerate(ordered[: last + 1])) for last in range(3)]
        assert [corrected for _, corrected in ordered] == pytest.approx(running, rel=1e-12)


def test_a_method_beats_the_simple_ones_if_it_beats_each() -> None:
    points = synthetic_points(num_seeds=8, levels={"strong": 3.0, "middle": 0.7, "weak": 0.1, "simple": 0.0, "neighbours": 0.4})
    methods, simple = ["strong", "middle", "weak", "simple"], ["simple", "neighbours"]
    found = against_simple(points, methods, simple)
    assert found["method"].to_list() == ["strong", "middle", "weak"]
    means = {name: np.mean([np.mean(v) for v in by_loop(points, "auc_del_negative", name).values()]) for name in simple}
    assert set(found["baseline"]) == {max(means, key=lambda name: means[name])}
    for row in found.iter_rows(named=True):
        pairs = [comparisons(points, [row["method"]], [name]).row(0, named=True) for name in simple]
        assert row["p_value"] == max(pair["p_value"] if pair["mean"] > 0 else 1.0 for pair in pairs)
    expected = holm(found["p_value"].to_numpy())
    assert found["p_holm"].to_list() == expected.tolist()
    assert found["p_holm"][0] < 0.05
    one = against_simple(points.filter(seed=0), methods, simple)
    assert one["p_value"].null_count() == one.height == 3


def test_differences_of_shared_points_have_a_two_way_interval() -> None:
    """Of the same boxes of differences; it says something about other points, which the clustered interval does not."""
    points = synthetic_points(num_seeds=5, num_points=4, crossed=True)
    for row in comparisons(points, NAMES, ["weak"], seed=2).iter_rows(named=True):
        first, second = (np.array(list(by_loop(points, "auc_del_negative", row[name]).values())) for name in ("method", "baseline"))
        expected = two_way_intervals((first - second)[None], seed=2)
        assert expected is not None
        assert (row["ci95_two_way_low"], row["ci95_two_way_high"]) == tuple(expected[0])
        assert row["ci95_two_way_high"] - row["ci95_two_way_low"] > row["ci95_high"] - row["ci95_low"]
    own = comparisons(synthetic_points(), NAMES, ["weak"])
    assert own["ci95_two_way_low"].null_count() == own["ci95_two_way_high"].null_count() == own.height == 2


def test_a_difference_is_seen_where_pairs_share_their_noise() -> None:
    base = synthetic_points(num_seeds=10, levels={"a": 0.0}, spread=5)
    ahead = base.with_columns(method=pl.lit("b"), value=pl.col("value") + 0.01 * (1 + pl.col("seed")))
    points = pl.concat([base, ahead])
    row = comparisons(points, ["a", "b"], ["a"]).row(0, named=True)
    assert row["method"] == "b"
    assert row["mean"] == pytest.approx(0.055)
    assert 0.01 < row["ci95_low"] < row["ci95_high"] < 0.1
    assert row["p_value"] == row["p_holm"] == pytest.approx(2 / 2**10)
    table = metrics_table(points, ["a", "b"])
    assert table["ci95_clustered_low"][1] < table["mean"][0]  # their own intervals cannot tell them apart


def test_equal_methods_differ_by_nothing() -> None:
    base = synthetic_points(num_seeds=5, levels={"a": 0.3})
    points = pl.concat([base, base.with_columns(method=pl.lit("b"))])
    row = comparisons(points, ["b"], ["a"]).row(0, named=True)
    assert [row[name] for name in ("mean", "ci95_low", "ci95_high", "p_value", "p_holm")] == [0, 0, 0, 1, 1]
    assert ranks(points, ["a", "b"])["share"].to_list() == [0.5, 0.5]
    assert best(points, ["a", "b"])["mean_rank"].to_list() == [1.5, 1.5]
    assert best(points, ["a", "b"])["share_best"].to_list() == [0.5, 0.5]


def test_a_tie_by_rounding_is_a_tie() -> None:
    base = synthetic_points(num_seeds=5, levels={"a": 0.3})
    points = pl.concat([base, base.with_columns(method=pl.lit("b"), value=pl.col("value") + 1e-14)])
    assert comparisons(points, ["b"], ["a"])["mean"][0] > 0
    assert ranks(points, ["a", "b"])["share"].to_list() == [0.5, 0.5]
    assert best(points, ["a", "b"])["share_best"].to_list() == [0.5, 0.5]
    apart = pl.concat([base, base.with_columns(method=pl.lit("b"), value=pl.col("value") + 1e-9)])
    assert ranks(apart, ["a", "b"])["share"].to_list() == [0, 1]
    assert best(apart, ["a", "b"])["share_best"].to_list() == [0, 1]


def test_unknown_baselines_are_refused() -> None:
    with pytest.raises(NotCommittedError, match=r"no method missing to compare with[^$]*got: weak, middle, strong"):
        comparisons(synthetic_points(), ["weak"], ["strong", "missing"])


def test_a_baseline_need_not_be_among_the_methods_nor_have_every_metric() -> None:
    points = several().filter((pl.col("method") != "weak") | (pl.col("metric") != "mislabel_auroc"))
    found = comparisons(points, ["strong"], ["weak"])
    assert found.select("metric", "method", "baseline").rows() == [
        ("auc_del_negative", "strong", "weak"),
        ("brittleness_removed", "strong", "weak"),
    ]
    only = points.filter(pl.col("metric") == "mislabel_auroc")
    assert comparisons(only, NAMES, ["weak"]).height == 0  # asked for, but it has no self-influence
    assert comparisons(points, ["strong"], ["strong"]).height == 0


@pytest.mark.parametrize(("metric", "direction"), [("auc_del_negative", 1), ("brittleness_removed", -1)])
def test_ranks_and_best_equal_a_plain_loop(metric: str, direction: int) -> None:
    points = synthetic_points(num_seeds=5, metrics=(metric,), levels={"strong": 0.6, "middle": 0.4, "weak": 0.1})
    means = {method: [plain.fmean(seed) for seed in by_loop(points, metric, method).values()] for method in NAMES}
    wins: dict[tuple[str, str], float] = defaultdict(float)
    places: dict[str, float] = defaultdict(float)
    firsts: dict[str, float] = defaultdict(float)
    drawn = resamples(5, seed=3)
    for draw in drawn:
        of = {method: direction * plain.fmean(means[method][seed] for seed in draw) for method in NAMES}
        for method in NAMES:
            others = [other for other in NAMES if other != method]
            for other in others:
                wins[method, other] += of[method] > of[other]
            places[method] += 1 + sum(of[other] > of[method] for other in others)
            firsts[method] += of[method] == max(of.values())
    found = ranks(points, NAMES, seed=3)
    assert found.select("method", "other").rows() == [(a, b) for a in NAMES for b in NAMES if a != b]
    assert found["share"].to_list() == pytest.approx([wins[pair] / 10_000 for pair in found.select("method", "other").rows()], abs=1e-9)
    assert 0 < found["share"].min() < 0.4  # type: ignore[operator]
    leaders = best(points, NAMES, seed=3)
    assert leaders["method"].to_list() == NAMES
    assert leaders["mean_rank"].to_list() == pytest.approx([places[method] / 10_000 for method in NAMES], abs=1e-9)
    assert leaders["share_best"].to_list() == pytest.approx([firsts[method] / 10_000 for method in NAMES], abs=1e-9)


def test_ranks_share_what_there_is() -> None:
    points = synthetic_points(num_seeds=7, levels={"a": 0.5, "b": 0.5, "c": 0.4, "d": 0.3})
    found = ranks(points, list("abcd"))
    share = {(method, other): value for _, method, other, value in found.iter_rows()}
    assert all(share[pair] + share[pair[::-1]] == pytest.approx(1, abs=1e-15) for pair in share)
    leaders = best(points, list("abcd"))
    assert leaders["share_best"].sum() == pytest.approx(1)
    assert leaders["mean_rank"].sum() == pytest.approx(1 + 2 + 3 + 4)


@pytest.mark.parametrize("name", TABLES)
def test_one_seed_says_nothing_about_others(name: str) -> None:
    points = synthetic_points(num_seeds=1, crossed=True)
    found = TABLES[name](points, NAMES)
    assert found.height
    assert found.schema == pl.Schema(table_specs()[name].columns)
    known = {"metric", "method", "baseline", "other", "mean", "num_seeds", "num_points"}
    for column in found.columns:
        assert found[column].null_count() == (0 if column in known else found.height)


def test_one_method_leads_alone() -> None:
    points = synthetic_points(levels={"a": 1.0})
    assert ranks(points, ["a"]).height == 0
    assert best(points, ["a"]).rows() == [("auc_del_negative", "a", 1.0, 1.0)]


@pytest.mark.parametrize("name", TABLES)
def test_schema_and_order_hold_for_empty_tables_too(name: str) -> None:
    assert TABLES[name](several(), NAMES).schema == pl.Schema(table_specs()[name].columns)
    empty = TABLES[name](several().clear(), NAMES)
    assert empty.schema == pl.Schema(table_specs()[name].columns)
    assert empty.height == 0


@pytest.mark.parametrize("name", TABLES)
def test_numbers_depend_on_the_seed_alone(name: str) -> None:
    points = synthetic_points(num_seeds=16, levels={"strong": 0.4, "middle": 0.3, "weak": 0.25})
    first = TABLES[name](points, NAMES, seed=1)
    assert first.equals(TABLES[name](points, NAMES, seed=1))
    other = TABLES[name](points, NAMES, seed=2)
    drawn = {"metrics": ["ci95_clustered_low"], "comparisons": ["ci95_low", "p_value"], "ranks": ["share"], "best": ["share_best"]}[name]
    assert all(first[column].to_list() != other[column].to_list() for column in drawn)


@settings(max_examples=8, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(TABLES)))
def test_row_order_never_matters(random: Any, name: str) -> None:
    points = pl.concat([several(), synthetic_points(metrics=("lds",), crossed=True)])
    order = list(range(points.height))
    random.shuffle(order)
    assert TABLES[name](points[order], NAMES).equals(TABLES[name](points, NAMES))


@pytest.mark.parametrize("name", ["metrics", "ranks", "comparisons"])
def test_no_number_depends_on_which_other_methods_are_there(name: str) -> None:
    """Neither on those in the table nor on those asked for; Holm's correction is for all that is asked."""
    levels = {f"m{number:02d}": number / 20 for number in range(20)} | {"weak": 0.1, "strong": 0.3, "middle": 0.2}
    many = synthetic_points(num_seeds=16, levels=levels, crossed=True)
    few = many.filter(pl.col("method").is_in(NAMES))
    alone = TABLES[name](few, NAMES).drop("p_holm", strict=False)
    assert TABLES[name](many, NAMES).drop("p_holm", strict=False).equals(alone)
    keys = [column for column in ("method", "other", "baseline") if column in alone.columns]
    among = TABLES[name](many, sorted(levels)).drop("p_holm", strict=False).filter(pl.all_horizontal(pl.col(keys).is_in(NAMES)))
    assert among.sort(keys).equals(alone.sort(keys))


def test_the_order_of_methods_is_the_callers() -> None:
    points = synthetic_points()
    for order in (NAMES, NAMES[::-1]):
        assert metrics_table(points, order)["method"].to_list() == order
        assert best(points, order)["method"].to_list() == order
    assert best(points, NAMES[::-1]).sort("method").equals(best(points, NAMES).sort("method"))
