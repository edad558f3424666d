"""The metrics: what each is called, which way is better, and what it says. One entry here, one column of answers everywhere.

A metric is a number for each (method, seed, test point), or for each (method, seed) where it is about no test point. They are kept in
one long table, the points table (:data:`POINTS_SCHEMA`); means, intervals, differences and ranks are made from it alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl


@dataclass(frozen=True)
class Metric:
    """``title`` heads a column, ``explanation`` is a sentence below the table; not ``about_points``: one number a seed."""

    name: str
    title: str
    better: Literal["larger", "smaller"]
    explanation: str
    about_points: bool = True


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "auc_del_negative",
            "AUC-DEL₋",
            "larger",
            "AUC-DEL₋: change of the prediction when a method's most negative training samples are removed and the model is "
            "retrained, averaged over the removed fractions; larger is better.",
        ),
        Metric(
            "auc_del_positive",
            "AUC-DEL₊",
            "smaller",
            "AUC-DEL₊: change of the prediction when a method's most positive training samples are removed and the model is "
            "retrained, averaged over the removed fractions; smaller (more negative) is better.",
        ),
        Metric(
            "lds",
            "LDS",
            "larger",
            "LDS (linear datamodeling score): Spearman correlation, over random subsets of the training set, of the prediction of the "
            "model trained on a subset with the sum of the method's scores in it; larger is better.",
        ),
        Metric(
            "loo_correlation",
            "LOO correlation",
            "larger",
            "LOO correlation: Spearman correlation, over single training samples left out, of the real change of the prediction with "
            "the change that the method's scores predict; larger is better.",
        ),
        Metric(
            "brittleness_flipped",
            "flipped",
            "larger",
            "Flipped: share of test points whose predicted class changes at one of the declared removals of a method's strongest "
            "supporters; larger is better.",
        ),
        Metric(
            "brittleness_removed",
            "removed to flip",
            "smaller",
            "Removed to flip: smallest declared share of the training set whose removal flips the predicted class; a prediction that "
            "none of them flips counts with the largest, so this is a lower bound; smaller is better.",
        ),
        Metric(
            "mislabel_auroc",
            "mislabel AUROC",
            "larger",
            "Mislabel AUROC: chance that a flipped label has a larger self-influence than an unflipped one (0.5: no better than "
            "chance); larger is better. Not the area under the inspection curve.",
            about_points=False,
        ),
        Metric(
            "mislabel_inspection_area",
            "inspection area",
            "larger",
            "Inspection area: mean share of the flipped labels found, over all shares of the training set looked at in the order of "
            "self-influence; larger is better. Not the AUROC.",
            about_points=False,
        ),
    )
}

POINTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "metric": pl.String,
    "method": pl.String,
    "seed": pl.Int64,
    "test_id": pl.Int64,  # null for a metric that is about no test point
    "value": pl.Float64,  # finite
}
"""The points table, sorted by metric, method, seed and test_id."""
