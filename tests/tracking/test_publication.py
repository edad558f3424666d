from __future__ import annotations

import math
from typing import Any

import polars as pl
import pytest

from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.tracking.publication import Publication, acceptable, method_runs, run_files
from tests.report import synthetic
from tests.tracking.examples import METHODS, publication


def values(made: Publication, name: str, method: str = "ntk-final/tracking") -> dict[int, float]:
    (run,) = [run for run in method_runs(made) if run.method == method]
    return {m.step: m.value for m in run.measurements if m.name == name}


def test_every_number_of_the_metrics_table_is_measured() -> None:
    made = publication(signs=("negative", "positive"))
    assert made.metrics.height == 2 * len(METHODS)
    for row in made.metrics.iter_rows(named=True):
        metric, method = row["metric"], row["method"]
        assert values(made, metric, method) == {0: row["mean"]}
        assert values(made, f"{metric}_ci95_low", method) == {0: row["ci95_clustered_low"]}
        assert values(made, f"{metric}_ci95_high", method) == {0: row["ci95_clustered_high"]}
        assert values(made, f"{metric}_ci95_pooled", method) == {0: row["ci95_pooled"]}
        assert values(made, "num_seeds", method) == {0: 3}
        assert values(made, "num_points", method) == {0: 2}


def test_curves_step_by_percent_and_seeds_by_seed() -> None:
    made = publication()
    curve = made.curves["del_negative"].filter(method="ntk-final/tracking").sort("share")
    assert values(made, "del_negative") == dict(zip((0, 2, 4, 6, 8, 10), curve["mean"], strict=True))
    seeds = made.seed_means.filter(method="ntk-final/tracking")
    assert values(made, "auc_del_negative_by_seed") == dict(zip(seeds["seed"], seeds["value"], strict=True))


def test_fractions_that_are_no_whole_percents_do_not_collide() -> None:
    made = publication(fractions=(0.0, 0.001, 0.004))
    assert values(made, "del_negative") == {}
    assert list(values(made, "del_negative_ppm")) == [0, 1000, 4000]


def test_one_seed_leaves_the_intervals_out() -> None:
    made = publication(num_seeds=1)
    assert len(values(made, "auc_del_negative")) == 1
    for name in ("low", "high", "pooled"):
        assert values(made, f"auc_del_negative_ci95_{name}") == {}
    assert all(math.isfinite(m.value) for run in method_runs(made) for m in run.measurements)


def test_parameters_costs_and_diagnostics_of_a_method() -> None:
    made = publication(diagnostics={"ntk-final/tracking": [("residual", 0.1, 0), ("residual", 0.2, 1)]})
    tracked, random = method_runs(made)
    own = {"method": "ntk-final/tracking", "kernel": "ntk", "checkpoint": "final", "importance": "tracking"}
    assert tracked.parameters == {**own, "recipe.epochs": "20"}
    assert random.parameters == {
        "method": "random",
        "kernel": "none",
        "checkpoint": "none",
        "importance": "random",
        "recipe.epochs": "20",
    }
    assert (values(made, "residual"), values(made, "retrainings", "random")) == ({0: 0.1, 1: 0.2}, {0: 4.0})


@pytest.mark.parametrize(
    "changes",
    [
        {"method_parameters": {"recipe.epochs": "21"}},
        {"method_files": {"ntk-final/tracking": {"scores.csv": b"x"}}},
        {"datasets": []},
        {"costs": pl.DataFrame({"method": ["ntk-final/tracking"], "retrainings": [5]})},
    ],
)
def test_the_digest_covers_all_parts(changes: dict[str, Any]) -> None:
    assert method_runs(publication(**changes))[0].digest != method_runs(publication())[0].digest
    later = publication(began=5, ended=6, progress=[("system/progress.x", 1.0, 0, 0)])
    assert method_runs(later)[0].digest == method_runs(publication())[0].digest


def test_tags_name_the_method() -> None:
    assert method_runs(publication())[1].tags == {
        "genrep.method": "random",
        "genrep.kernel": "none",
        "genrep.checkpoint": "none",
        "genrep.importance": "random",
        "genrep.problem": "digits",
    }


def with_metrics(num_seeds: int = 3) -> Publication:
    """Two published methods, compared with random removal and with a baseline of their own."""
    names = [method.name for method in METHODS]
    judged = synthetic.judged(num_seeds, names=[*names, "influence-function"])
    published = [table.filter(pl.col("method").is_in(names)) for table in (judged.metrics, judged.comparisons)]
    return publication(num_seeds=num_seeds, metrics=published[0], comparisons=published[1])


def test_every_other_metric_is_measured_with_its_interval_and_p_value() -> None:
    made = with_metrics()
    for row in made.metrics.filter(pl.col("metric") != "auc_del_negative").iter_rows(named=True):
        metric, method = row["metric"], row["method"]
        assert values(made, metric, method) == {0: row["mean"]}
        assert values(made, f"{metric}_ci95_low", method) == {0: row["ci95_clustered_low"]}
        assert values(made, f"{metric}_ci95_high", method) == {0: row["ci95_clustered_high"]}
    assert made.comparisons.height
    for row in made.comparisons.filter(pl.col("baseline") == "random").iter_rows(named=True):
        assert values(made, f"{row['metric']}_p_vs_random", row["method"]) == {0: row["p_holm"]}
    assert values(made, "lds_p_vs_random", "random") == {}


def test_the_corrected_p_value_is_published() -> None:
    made = with_metrics()
    raw = made.comparisons.with_columns(p_value=pl.lit(0.5), p_holm=pl.lit(0.75))
    assert values(publication(metrics=made.metrics, comparisons=raw), "lds_p_vs_random") == {0: 0.75}


def test_a_number_is_published_once_under_its_name() -> None:
    made = with_metrics()
    for run in method_runs(made):
        places = [(m.name, m.step) for m in run.measurements]
        assert len(places) == len(set(places))
    (mean,) = made.metrics.filter(metric="auc_del_negative", method="ntk-final/tracking")["mean"]
    assert values(made, "auc_del_negative") == {0: mean}
    assert values(made, "lds_by_seed") == values(made, "lds_ci95_pooled") == {}


def test_one_seed_has_no_p_values() -> None:
    made = with_metrics(num_seeds=1)
    assert len(values(made, "lds")) == 1
    assert values(made, "lds_ci95_low") == values(made, "lds_p_vs_random") == {}


def test_the_order_of_metrics_rows_changes_no_digest() -> None:
    made = with_metrics()
    shuffled = publication(metrics=made.metrics.reverse(), comparisons=made.comparisons.reverse())
    assert [run.digest for run in method_runs(shuffled)] == [run.digest for run in method_runs(made)]


def test_a_metric_that_is_none_is_refused() -> None:
    made = with_metrics()
    infinite = made.metrics.with_columns(mean=pl.when(pl.col("metric") == "lds").then(float("inf")).otherwise("mean"))
    with pytest.raises(NonFiniteError, match="lds"):
        method_runs(publication(metrics=infinite))


def spoilt(table: pl.DataFrame, column: str) -> pl.DataFrame:
    return table.with_columns(pl.when(pl.col("method") == "random").then(float("nan")).otherwise(column).alias(column))


@pytest.mark.parametrize(("table", "column"), [("metrics", "ci95_pooled"), ("curves", "mean"), ("seed_means", "value")])
def test_a_number_that_is_not_finite_is_refused(table: str, column: str) -> None:
    found = getattr(publication(), table)
    changed = {name: spoilt(frame, column) for name, frame in found.items()} if table == "curves" else spoilt(found, column)
    with pytest.raises(NonFiniteError, match="method random"):
        method_runs(publication(**{table: changed}))


def test_the_digest_follows_the_numbers() -> None:
    first, again, other = (method_runs(made)[0] for made in (publication(), publication(), publication(spread=0.6)))
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_long_or_oddly_named_parameters_stay_in_the_config() -> None:
    made = publication(parameters={"b": "1", "a.b/c": "2", "odd [name]": "3", "a//b": "4", "long": "x" * 501, "just": "x" * 500})
    assert list(acceptable(made.parameters)) == ["a.b/c", "b", "just"]
    assert run_files(made)["config.yaml"] == b"seeds: 3\n"


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.html", "a/../../b", "", "."])
def test_artifacts_stay_inside_their_run(name: str) -> None:
    with pytest.raises(StoreError, match="artifact"):
        publication(artifacts={name: b""})
