"""Does self-influence find wrong labels? AUROC, and the share found against the share looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.errors import NonFiniteError, StoreError
from genrep_dist.evaluation.metrics import POINTS_SCHEMA

Scores = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]


def mislabel_points(self_influence: Mapping[tuple[str, int], Scores], flipped: Mask, ids: Ids) -> pl.DataFrame:
    """The points (by POINTS_SCHEMA, sorted, test_id null) of the metrics mislabel_auroc and mislabel_inspection_area.

    ``self_influence`` holds (N,) by (method, seed), larger where a label is more suspicious; ``flipped`` (N,) marks the wrong labels,
    ``ids`` (N,) names the samples. AUROC is the chance that a flipped sample has the larger score, ties half. The area is the
    trapezoidal mean, over the share looked at, of the share found (:func:`inspection_curve`). Without ties, and with p the share of flipped
    labels, area = (1 - p) AUROC + p / 2: chance is 1/2 in both, the best area 1 - p / 2.

    Errors as for :func:`inspection_curve`.
    """
    from sklearn.metrics import roc_auc_score  # a quarter of a second and 60 MB, for the runs that ask for it

    rows: list[tuple[str, str, int, None, float]] = []
    for (method, seed), scores in self_influence.items():
        curve = inspection_curve(scores, flipped, ids)
        area = float(np.trapezoid(curve["found"].to_numpy(), curve["inspected"].to_numpy()))
        rows.append(("mislabel_auroc", method, seed, None, float(roc_auc_score(flipped, scores))))
        rows.append(("mislabel_inspection_area", method, seed, None, area))
    return pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row").sort(list(POINTS_SCHEMA)[:-1])


def inspection_curve(scores: Scores, flipped: Mask, ids: Ids) -> pl.DataFrame:
    """``inspected`` share of the training set, in order of descending ``scores`` (equal ones: lowest id first), and ``found`` share of
    the ``flipped`` samples in it; N + 1 rows, from (0, 0) to (1, 1).

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
