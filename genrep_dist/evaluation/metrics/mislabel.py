"""Mislabelled data: whether self-influence finds the training samples whose labels were changed on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.config.experiment import Experiment
from genrep_dist.config.sections import FlipSection
from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.evaluation.metrics.base import (
    POINTS_SCHEMA,
    CurvePlot,
    EvaluationData,
    Ids,
    Metric,
    MetricInfo,
    MetricTables,
    TableSpec,
)

Scores = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]


class Mislabel(Metric):
    """AUROC of self-influence as a detector of flipped labels, and the area under the inspection curve. It requests no retraining."""

    name = "mislabel"
    title = "Mislabelled data"
    numbers = (
        MetricInfo(
            "mislabel_auroc",
            "mislabel AUROC",
            "larger",
            "Mislabel AUROC: probability that a flipped label has a larger self-influence than an unflipped one (0.5: no better than "
            "chance); larger is better. Not the area under the inspection curve.",
            about_points=False,
            chance=0.5,
        ),
        MetricInfo(
            "mislabel_inspection_area",
            "inspection area",
            "larger",
            "Inspection area: mean share of the flipped labels found, over all shares of the training set inspected in the order of "
            "self-influence; larger is better. Not the AUROC.",
            about_points=False,
            chance=0.5,
        ),
    )
    # Mean over seeds: share of the flipped labels found against the share of the training set inspected.
    tables: Mapping[str, TableSpec] = {"inspection": TableSpec({"method": pl.String, "inspected": pl.Float64, "found": pl.Float64})}
    section = None
    needs_all_scores = False
    needs_self_influence = True

    def settings(self, experiment: Experiment) -> FlipSection | None:
        return experiment.problem.flip_labels

    def disabled(self, experiment: Experiment) -> Experiment:
        """The same experiment: the flipped labels are a part of its training data."""
        return experiment

    def evaluate(self, data: EvaluationData) -> MetricTables:
        ids = next(iter(data.seeds.values())).train_ids
        flipped = np.isin(ids, list(data.flipped_ids))
        found = {(name, seed): one.self_influence(name) for name in data.experiment.methods for seed, one in data.seeds.items()}
        known = {place: values for place, values in found.items() if values is not None}
        curves = [
            inspection_curve(values, flipped, ids).with_columns(method=pl.lit(name), seed=pl.lit(seed))
            for (name, seed), values in known.items()
        ]
        mean = pl.concat(curves).group_by("method", "inspected").agg(pl.col("found").sort_by("seed").mean()).sort("method", "inspected")
        return MetricTables(mislabel_points(known, flipped, ids), {"inspection": mean.select("method", "inspected", "found")})

    def curves(self, tables: Mapping[str, pl.DataFrame]) -> Sequence[CurvePlot]:
        inspection = tables["inspection"]
        if not inspection.height:
            return ()
        nothing = pl.lit(None, pl.Float64)
        return [
            CurvePlot(
                "inspection",
                inspection.select("method", share="inspected", mean=100 * pl.col("found"), low=nothing, high=nothing),
                "Inspection curves",
                "Inspecting the training samples with the largest self-influence first should find the flipped labels early.",
                "Share of the flipped labels found against the share of the training set inspected; mean over networks. The diagonal is "
                "chance.",
                "Inspection curves. The table above has their areas.",
                "training samples inspected, largest self-influence first (%)",
                "flipped labels found (%)",
                reference="diagonal",
            )
        ]

    def facts(self, experiment: Experiment, num_train: int, tables: Mapping[str, pl.DataFrame]) -> dict[str, str]:
        flips = experiment.problem.flip_labels
        assert flips is not None
        count = round(flips.share * num_train)
        return {"Flipped labels": f"{count:,} training samples ({100 * flips.share:g} %), the same for all networks"}


def mislabel_points(self_influence: Mapping[tuple[str, int], Scores], flipped: Mask, ids: Ids) -> pl.DataFrame:
    """The points (by POINTS_SCHEMA, sorted, test_id null) of the metrics mislabel_auroc and mislabel_inspection_area.

    ``self_influence`` holds (N,) by (method, seed), larger if a label is more suspicious; ``flipped`` (N,) marks the wrong labels,
    ``ids`` (N,) names the samples. AUROC is the chance that a flipped sample has the larger score, ties half. The area is the
    trapezoidal mean, over the share inspected, of the share found (:func:`inspection_curve`). Without ties, and with p the share of flipped
    labels, area = (1 - p) AUROC + p / 2: chance is 1/2 in both, the best area 1 - p / 2.

    Errors as for :func:`inspection_curve`.
    """
    from sklearn.metrics import roc_auc_score  # slow to import

    rows: list[tuple[str, str, int, None, float]] = []
    for (method, seed), scores in self_influence.items():
        curve = inspection_curve(scores, flipped, ids)
        area = float(np.trapezoid(curve["found"].to_numpy(), curve["inspected"].to_numpy()))
        rows.append(("mislabel_auroc", method, seed, None, float(roc_auc_score(flipped, scores))))
        rows.append(("mislabel_inspection_area", method, seed, None, area))
    return pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row").sort(list(POINTS_SCHEMA)[:-1])


def inspection_curve(scores: Scores, flipped: Mask, ids: Ids) -> pl.DataFrame:
    """``inspected`` share of the training set in the order of descending ``scores`` (equal ones: lowest id first), and ``found``, the
    share of the ``flipped`` samples in it; N + 1 rows, from (0, 0) to (1, 1).

    StoreError for shapes that do not fit, and where no sample or every one is flipped; NonFiniteError with the ids of NaN or Inf.
    """
    total = int(flipped.sum())
    if not (scores.ndim == 1 and scores.shape == flipped.shape == ids.shape and 0 < total < len(ids)):
        raise StoreError(
            "self-influence and flipped labels do not fit each other",
            where="inspection_curve",
            expected="scores, flipped and ids (N,), some labels flipped and some not",
            got=f"scores {scores.shape}, flipped {flipped.shape} with {total} of them, ids {ids.shape}",
        )
    bad = np.sort(ids[~np.isfinite(scores)])
    if len(bad):
        raise NonFiniteError(
            "self-influence holds NaN or Inf",
            where="inspection_curve",
            expected="finite scores",
            got=f"{len(bad)} training samples, ids {bad[:10].tolist()}" + (" ..." if len(bad) > 10 else ""),
        )
    found = np.concatenate([[0], np.cumsum(flipped[np.lexsort((ids, -scores))])])
    return pl.DataFrame({"inspected": np.arange(len(ids) + 1) / len(ids), "found": found / total})
