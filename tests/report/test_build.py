from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from genrep_dist.config import Experiment
from genrep_dist.evaluation.metrics.base import registered_metrics
from genrep_dist.evaluation.metrics.deletion import auc_points, replicate_spread
from genrep_dist.evaluation.statistics import best, comparisons, metrics_table, ranks
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.report.build import data_files
from tests.report import synthetic

pytestmark = pytest.mark.publishes

EVERYTHING = ["table.md", "table.tex", "report.html", "curves_negative.png", "curves_positive.png", "inspection.png"]


def test_all_files_and_twice_the_same_bytes() -> None:
    first, again = data_files(synthetic.report()), data_files(synthetic.report())
    assert list(first) == EVERYTHING
    assert first == again
    assert all(first.values())


def test_files_of_what_was_measured_alone() -> None:
    assert list(data_files(synthetic.report(metrics=("auc_del_negative",)))) == [
        "table.md",
        "table.tex",
        "report.html",
        "curves_negative.png",
    ]


@pytest.mark.parametrize(("num_seeds", "two_way"), [(1, 0), (3, 0), (6, 1)])
def test_what_the_statistics_make_of_real_points_can_be_drawn(num_seeds: int, two_way: int) -> None:
    report = synthetic.report(num_seeds, metrics=("auc_del_negative",))
    deletion = report.tables["deletion"]
    if two_way:
        # Every seed gets the same ids: a crossed design.
        deletion = deletion.with_columns(test_id=pl.col("test_id").rank("dense").over("seed", "method", "sign").cast(pl.Int64))
    points, names = auc_points(deletion), synthetic.NAMES
    tables = EvaluationTables(
        deletion=deletion,
        points=points,
        metrics=metrics_table(points, names),
        comparisons=comparisons(points, names, ["influence-function", "random"]),
        ranks=ranks(points, names),
        best=best(points, names),
    )
    files = data_files(replace(report, tables=tables))
    table, page = files["table.md"].decode(), files["report.html"].decode()
    assert ("two-way" in table) is bool(two_way)
    assert ("Pairwise comparison" in page) is (num_seeds > 1)
    assert ("bootstrap draws over seeds" in page) is (num_seeds > 1)
    assert "None" not in table
    assert "None" not in page
    assert "nan" not in table.lower()


def replicates(deltas: list[list[float]]) -> pl.DataFrame:
    rows = [
        (seed, "m", 1, "negative", 0.1, replicate, 5, delta, delta)
        for seed, values in enumerate(deltas)
        for replicate, delta in enumerate(values)
    ]
    return pl.DataFrame(rows, schema=dict(table_specs()["replicates"].columns), orient="row")


def test_the_spread_of_replicates_is_the_pooled_deviation() -> None:
    draw = np.random.default_rng(0)
    deltas = [list(draw.normal(mean, 0.3, size)) for mean, size in ((0.0, 4), (5.0, 3), (9.0, 1))]
    squares = sum((value - float(np.mean(values))) ** 2 for values in deltas for value in values)
    expected = (squares / (3 + 2)) ** 0.5
    assert replicate_spread(replicates(deltas)) == pytest.approx(expected)
    assert replicate_spread(replicates(deltas).reverse()) == replicate_spread(replicates(deltas))


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate({"name": "e", "problem": {"name": "digits"}, "seeds": 2, "methods": ["random"], **changes})


def facts(asked: Experiment) -> dict[str, str]:
    tables = EvaluationTables()
    measured = [metric for metric in registered_metrics() if metric.measured(asked)]
    return {label: text for metric in measured for label, text in metric.facts(asked, 250, tables).items()}


def test_how_each_metric_was_measured() -> None:
    same = "same initialisation and order (common random numbers)"
    assert facts(experiment(deletion={"fractions": [0.0, 0.025]})) == {
        "Removed": "0 %, 2.5 % of the training set; the AUC is the mean over them",
        "Retrain policy": same,
    }
    found = facts(
        experiment(
            problem={"name": "digits", "flip_labels": {"share": 0.1}},
            lds={"subsets": 64, "retrain": "fresh", "replicates": 3},
            loo={"samples": 32},
            brittleness={"counts": [0, 5, 1000]},
        )
    )
    assert {label: text for label, text in found.items() if label not in ("Removed", "Retrain policy")} == {
        "LDS": "64 subsets a network, each 50 % of the training set; fresh initialisation and order, 3 times; the mean is used",
        "LOO correlation": f"32 samples a network, each left out once; {same}",
        "Brittleness": f"removed: 0, 5, 1,000 samples; {same}",
        "Flipped labels": "25 training samples (10 %), the same for all networks",
    }


def test_without_replicates_there_is_no_spread() -> None:
    assert replicate_spread(replicates([[1.0], [2.0]])) is None
    assert replicate_spread(table_specs()["replicates"].empty()) is None
