"""The files of one method: its curves beside those of random removal, its row of every table, and its strongest scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.examples import NUM_POINTS, selected_scores
from genrep_dist.report.figures import curve_figure
from genrep_dist.report.tables import RANDOM
from genrep_dist.results.run import Run

NUM_SCORES = 10
"""Training samples of each sign in the file of scores."""


def method_files(run: Run, tables: EvaluationTables) -> dict[str, Mapping[str, bytes]]:
    """Method to its files: ``metrics.csv``, ``scores.csv``, and a PNG for each curve that is logged."""
    return {method: dict(_files(run, tables, method)) for method in run.plan.experiment.methods}


def _files(run: Run, tables: EvaluationTables, method: str) -> Iterator[tuple[str, bytes]]:
    p_values = tables.comparisons.filter(pl.col("baseline") == RANDOM).select("metric", "method", p_vs_random="p_holm")
    rows = tables.metrics.join(p_values, on=["metric", "method"], how="left").filter(pl.col("method") == method)
    yield "metrics.csv", rows.drop("method").write_csv().encode()
    yield "scores.csv", strongest_scores(run, method).write_csv().encode()
    for curve in tables.curves:
        if curve.logged_as and (curve.frame["method"] == method).any():
            yield f"{curve.logged_as}.png", curve_figure(curve, methods=list(dict.fromkeys((method, RANDOM))))


def strongest_scores(run: Run, method: str) -> pl.DataFrame:
    """The strongest scores of each sign, for the first test points of the first seed: seed, test_id, train_id, score."""
    seed = run.plan.experiment.seeds[0]
    test_ids = run.test_ids(seed)[:NUM_POINTS].tolist()
    rows = [
        (seed, test_id, sample, score)
        for test_id, selected in zip(test_ids, selected_scores(run, method, seed, NUM_SCORES, len(test_ids)), strict=True)
        for scores in selected
        for sample, score in scores
    ]
    return pl.DataFrame(rows, schema={"seed": pl.Int64, "test_id": pl.Int64, "train_id": pl.Int64, "score": pl.Float64}, orient="row")
