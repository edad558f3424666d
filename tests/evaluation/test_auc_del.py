from __future__ import annotations

import io
import math
import statistics as plain
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from genrep_dist.errors import NonFiniteError, NotCommittedError
from genrep_dist.evaluation.intervals import bootstrap_interval, pooled_half_width
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA
from genrep_dist.evaluation.metrics.deletion import MethodLabels, auc_points, deletion_curves, summary_table
from genrep_dist.evaluation.statistics import comparisons, metrics_table, seed_means
from tests.evaluation.examples import METHODS, Labels, synthetic_deletion

SMALL = (("up", 1.0), ("random", 0.1))
LABELS = (Labels("up"), Labels("random", "none", "none", "random"))


def summarise(deletion: pl.DataFrame, methods: Sequence[MethodLabels], *, seed: int = 0) -> pl.DataFrame:
    """The summary of a deletion table, by the one path of statistics."""
    names = [method.name for method in methods]
    return summary_table(metrics_table(auc_points(deletion), names, seed=seed), methods)


def areas(deletion: pl.DataFrame, method: str, sign: str) -> list[float]:
    return auc_points(deletion).filter(metric=f"auc_del_{sign}", method=method)["value"].to_list()


def auc_by_loop(deletion: pl.DataFrame) -> dict[tuple[str, str], dict[int, list[float]]]:
    """(method, sign) -> seed -> AUC of each test point."""
    deltas: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    for row in deletion.iter_rows(named=True):
        deltas[row["method"], row["sign"], row["seed"], row["test_id"]].append(row["delta"])
    areas: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (method, sign, seed, _), values in sorted(deltas.items()):
        areas[method, sign][seed].append(sum(values) / len(values))
    return areas


def test_area_and_pooled_interval_equal_a_plain_loop() -> None:
    deletion = synthetic_deletion(num_seeds=4, num_points=3, strengths=SMALL, signs=("negative", "positive"))
    summary = summarise(deletion, LABELS)
    for (method, sign), by_seed in auc_by_loop(deletion).items():
        row = summary.row(by_predicate=pl.col("method") == method, named=True)
        pooled = [area for seed in by_seed.values() for area in seed]
        suffix = "_positive" if sign == "positive" else ""
        assert row[f"auc_del_{sign}"] == pytest.approx(plain.fmean(pooled), rel=1e-12)
        assert row[f"ci95_pooled{suffix}"] == pytest.approx(1.96 * plain.stdev(pooled) / math.sqrt(4 * 3), rel=1e-12)
        assert (row["num_seeds"], row["num_points"]) == (4, 3)
        assert areas(deletion, method, sign) == pytest.approx(pooled, rel=1e-12)


def test_clustered_interval_is_the_expanded_percentile_bootstrap_over_seeds() -> None:
    deletion = synthetic_deletion(num_seeds=12, num_points=4, strengths=SMALL)
    summary = summarise(deletion, LABELS)
    draw = np.random.default_rng(99)
    # Hesterberg's level for 12 seeds, from a printed t table: 1.0% instead of 2.5%.
    tail = 100 * float(stats.norm.cdf(-2.200985 * math.sqrt(12 / 11)))
    for method in ("up", "random"):
        per_seed = np.array([np.mean(points) for points in auc_by_loop(deletion)[method, "negative"].values()])
        means = [np.mean([per_seed[int(i)] for i in draw.integers(0, 12, 12)]) for _ in range(20_000)]
        row = summary.row(by_predicate=pl.col("method") == method, named=True)
        error = 0.18 * np.std(means)  # four times what such a percentile of 10,000 draws moves by with another generator
        assert row["ci95_clustered_low"] == pytest.approx(np.percentile(means, tail), abs=error)
        assert row["ci95_clustered_high"] == pytest.approx(np.percentile(means, 100 - tail), abs=error)
        direct = stats.bootstrap(
            (per_seed,),
            np.mean,
            n_resamples=20_000,
            confidence_level=1 - tail / 50,
            method="percentile",
            rng=np.random.default_rng(3),
        )
        assert row["ci95_clustered_low"] == pytest.approx(direct.confidence_interval.low, abs=error)
        assert row["ci95_clustered_high"] == pytest.approx(direct.confidence_interval.high, abs=error)
        assert row["ci95_clustered_high"] - row["ci95_clustered_low"] > 1.1 * np.diff(np.percentile(means, [2.5, 97.5]))[0]


def test_clustered_interval_is_wider_where_points_share_their_network() -> None:
    rows = [
        (seed, "m", point, "negative", 0.1, 1, 0.0, float(seed % 5), float(seed % 5)) for seed in range(20) for point in range(25)
    ]  # all variation lies between networks
    deletion = pl.DataFrame(rows, schema=synthetic_deletion(num_seeds=1, strengths=SMALL).columns, orient="row")
    row = summarise(deletion, [Labels("m")]).row(0, named=True)
    assert (row["ci95_clustered_high"] - row["ci95_clustered_low"]) / 2 > 3 * row["ci95_pooled"]


def test_summary_has_the_published_columns_in_the_order_of_the_methods() -> None:
    summary = summarise(synthetic_deletion(num_seeds=2, num_points=2), METHODS)
    published = (
        "method kernel checkpoint importance auc_del_negative ci95_pooled ci95_clustered_low ci95_clustered_high num_seeds num_points"
    )
    assert summary.columns == published.split()
    assert summary["method"].to_list() == [method.name for method in METHODS]
    assert summary.row(-2)[:4] == ("tracincp", "ntk", "all", "target")
    both = summarise(synthetic_deletion(num_seeds=2, num_points=2, signs=("negative", "positive")), METHODS)
    positive = "auc_del_positive ci95_pooled_positive ci95_clustered_low_positive ci95_clustered_high_positive"
    assert both.columns == (published + " " + positive).split()
    alone = summarise(synthetic_deletion(num_seeds=2, num_points=2, signs=("positive",)), METHODS)
    assert alone.columns == ("method kernel checkpoint importance num_seeds num_points " + positive).split()
    assert both.select(positive.split()).height == alone.height == len(METHODS)


def test_one_seed_has_no_intervals() -> None:
    deletion = synthetic_deletion(num_seeds=1, num_points=5, strengths=SMALL)
    row = summarise(deletion, LABELS).row(0, named=True)
    assert row["auc_del_negative"] == pytest.approx(plain.fmean(auc_by_loop(deletion)["up", "negative"][0]))
    assert [row[name] for name in ("ci95_pooled", "ci95_clustered_low", "ci95_clustered_high")] == [None, None, None]
    band = deletion_curves(deletion)
    assert band["low"].null_count() == band["high"].null_count() == band.height
    assert band.schema["low"] == pl.Float64


@pytest.mark.parametrize("num_seeds", [2, 3, 20])
def test_no_variance_gives_an_interval_of_width_zero(num_seeds: int) -> None:
    deletion = synthetic_deletion(num_seeds=num_seeds, strengths=SMALL).with_columns(delta=pl.lit(0.1))
    for row in summarise(deletion, LABELS).iter_rows(named=True):
        assert row["auc_del_negative"] == pytest.approx(0.1, abs=1e-15)
        assert row["ci95_clustered_low"] == row["ci95_clustered_high"] == row["auc_del_negative"]
        assert row["ci95_pooled"] == pytest.approx(0, abs=1e-15)
    band = deletion_curves(deletion)
    assert band["low"].equals(band["high"])


def test_curves_and_seeds_equal_a_plain_loop() -> None:
    deletion = synthetic_deletion(num_seeds=5, num_points=3, strengths=SMALL)
    for method, sign, fraction, mean, low, high in deletion_curves(deletion).iter_rows():
        chosen = deletion.filter((pl.col("method") == method) & (pl.col("sign") == sign) & (pl.col("fraction") == fraction))
        assert mean == pytest.approx(plain.fmean(chosen["delta"]), rel=1e-12, abs=1e-15)
        per_seed = np.array([plain.fmean(chosen.filter(pl.col("seed") == seed)["delta"]) for seed in range(5)])
        assert low <= mean <= high
        assert (low, high) == pytest.approx(bootstrap_interval(per_seed), abs=1e-12)
    by_loop = auc_by_loop(deletion)
    for metric, method, seed, auc in seed_means(auc_points(deletion), ["up", "random"]).iter_rows():
        assert auc == pytest.approx(plain.fmean(by_loop[method, metric.removeprefix("auc_del_")][seed]), rel=1e-12)


def test_a_difference_is_paired() -> None:
    deletion = synthetic_deletion(num_seeds=8, num_points=3, strengths=SMALL)
    by_loop = auc_by_loop(deletion)
    per_seed = [
        plain.fmean(a - b for a, b in zip(by_loop["up", "negative"][s], by_loop["random", "negative"][s], strict=True)) for s in range(8)
    ]
    difference = comparisons(auc_points(deletion), ["up"], ["random"]).row(0, named=True)
    assert difference["mean"] == pytest.approx(plain.fmean(per_seed), rel=1e-12)
    assert (difference["ci95_low"], difference["ci95_high"]) == pytest.approx(bootstrap_interval(np.array(per_seed)), abs=1e-12)


def test_methods_measured_on_other_points_are_refused() -> None:
    deletion = synthetic_deletion(num_seeds=3, strengths=SMALL)
    moved = deletion.with_columns(test_id=pl.when(pl.col("method") == "up").then(pl.col("test_id") + 5000).otherwise(pl.col("test_id")))
    with pytest.raises(NotCommittedError, match="holes"):
        comparisons(auc_points(moved), ["up"], ["random"])


def test_a_methods_numbers_do_not_depend_on_the_others() -> None:
    deletion = synthetic_deletion(num_seeds=6, strengths=SMALL)
    alone = summarise(deletion.filter(pl.col("method") == "up"), LABELS[:1])
    assert summarise(deletion, LABELS).head(1).equals(alone)
    assert summarise(deletion, LABELS[:1]).equals(alone)


def test_another_bootstrap_seed_moves_the_interval_a_little() -> None:
    deletion = synthetic_deletion(num_seeds=6, strengths=SMALL)
    first, second = (summarise(deletion, LABELS, seed=seed)["ci95_clustered_low"][0] for seed in (0, 1))
    assert first != second
    assert first == pytest.approx(second, rel=0.02)


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_row_order_never_matters(random: Any) -> None:
    deletion = synthetic_deletion(num_seeds=3, num_points=4, strengths=SMALL, signs=("negative", "positive"))
    order = list(range(deletion.height))
    random.shuffle(order)
    shuffled = deletion[order]
    for query in (lambda d: summarise(d, LABELS), deletion_curves, auc_points):
        assert query(shuffled).equals(query(deletion))
        assert as_bytes(query(shuffled)) == as_bytes(query(deletion))


def as_bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=12),
    st.floats(-100, 100, width=32),
    st.sampled_from([-2.0, -0.5, 0.25, 4.0]),
)
def test_the_interval_moves_with_its_data(values: list[float], shift: float, scale: float) -> None:
    data = np.array(values)
    low, high = bootstrap_interval(data)
    assert low is not None
    assert high is not None
    assert data.min() - 1e-9 <= low <= high <= data.max() + 1e-9
    ends = sorted((scale * low + shift, scale * high + shift))
    assert bootstrap_interval(scale * data + shift) == pytest.approx(tuple(ends), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.filter((pl.col("seed") != 1) | (pl.col("method") != "up") | (pl.col("fraction") != 0.04)),
        lambda d: d.filter((pl.col("seed") != 1) | (pl.col("test_id") != d.filter(pl.col("seed") == 1)["test_id"].min())),
        lambda d: d.filter((pl.col("method") != "up") | (pl.col("fraction") != 0.0)),
        lambda d: pl.concat([d, d.head(1)]),
        lambda d: d.filter(pl.col("method") != "up"),
        lambda d: d.clear(),
        # Two points that complete each other to one full curve.
        lambda d: d.filter(
            (pl.col("seed") > 0)
            | (pl.col("method") != "up")
            | ((pl.col("test_id") == d.filter(pl.col("seed") == 0)["test_id"].min()) & (pl.col("fraction") < 0.05))
            | ((pl.col("test_id") == d.filter(pl.col("seed") == 0)["test_id"].max()) & (pl.col("fraction") > 0.05))
        ),
    ],
)
def test_holes_are_refused(spoil: Any) -> None:
    deletion = synthetic_deletion(num_seeds=3, num_points=1, strengths=SMALL)
    deletion = pl.concat([deletion, deletion.with_columns(pl.col("test_id") + 2000)])
    with pytest.raises(NotCommittedError):
        summarise(spoil(deletion), LABELS)


def test_two_half_curves_are_no_curve() -> None:
    deletion = synthetic_deletion(num_seeds=2, num_points=1, strengths=SMALL)
    moved = pl.when(pl.col("fraction") > 0.05).then(pl.col("test_id") + 2000).otherwise(pl.col("test_id"))
    with pytest.raises(NotCommittedError, match="holes"):
        summarise(deletion.with_columns(moved.alias("test_id")), LABELS)


def test_signs_on_different_points_are_refused() -> None:
    deletion = synthetic_deletion(num_seeds=3, strengths=SMALL, signs=("negative", "positive"))
    fewer = deletion.filter((pl.col("sign") == "negative") | (pl.col("seed") < 2))
    with pytest.raises(NotCommittedError, match="different test points"):
        summarise(fewer, LABELS)


def test_a_number_that_is_none_is_refused() -> None:
    deletion = synthetic_deletion(num_seeds=2, strengths=SMALL)
    spoilt = deletion.with_columns(delta=pl.when(pl.col("seed") == 1).then(float("nan")).otherwise(pl.col("delta")))
    with pytest.raises(NonFiniteError, match="seed 1"):
        summarise(spoilt, LABELS)


def test_areas_as_points_are_the_same_areas() -> None:
    deletion = synthetic_deletion(num_seeds=4, num_points=3, strengths=SMALL, signs=("negative", "positive"))
    points = auc_points(deletion)
    assert points.schema == pl.Schema(POINTS_SCHEMA)
    assert points.equals(points.sort("metric", "method", "seed", "test_id"))
    expected: dict[tuple[str, str, int, int], list[float]] = defaultdict(list)
    for row in deletion.iter_rows(named=True):
        expected[f"auc_del_{row['sign']}", row["method"], row["seed"], row["test_id"]].append(row["delta"])
    assert points.height == len(expected) == 4 * 3 * 2 * 2
    for *cell, value in points.iter_rows():
        assert value == pytest.approx(plain.fmean(expected[tuple(cell)]), rel=1e-12)
    assert points.equals(auc_points(deletion.sample(fraction=1, shuffle=True, seed=1)))


def test_the_summary_is_a_view_of_the_metrics_table() -> None:
    deletion = synthetic_deletion(num_seeds=5, num_points=3, strengths=SMALL, signs=("negative", "positive"))
    found = metrics_table(auc_points(deletion), [label.name for label in LABELS])
    summary = summary_table(found, LABELS)
    for sign, suffix in (("negative", ""), ("positive", "_positive")):
        rows = found.filter(pl.col("metric") == f"auc_del_{sign}")
        assert rows["method"].to_list() == summary["method"].to_list()
        assert rows["mean"].to_list() == summary[f"auc_del_{sign}"].to_list()
        for name in ("ci95_pooled", "ci95_clustered_low", "ci95_clustered_high"):
            assert rows[name].to_list() == summary[name + suffix].to_list()
    assert summary_table(found, LABELS[::-1]).equals(summary.reverse())
    with pytest.raises(NotCommittedError, match="no AUC-DEL of method other"):
        summary_table(found, [Labels("other")])


def test_pooled_half_width_of_known_numbers() -> None:
    assert pooled_half_width(np.array([[1.0, 2.0], [3.0, 4.0]])) == pytest.approx(1.96 * math.sqrt(5 / 3) / 2)
    assert pooled_half_width(np.array([[1.0, 2.0]])) is None
