"""A small finished experiment to publish."""

from __future__ import annotations

from typing import Any

import polars as pl

from genrep_dist.core.methods import Method
from genrep_dist.evaluation.metrics.deletion import Deletion, auc_points
from genrep_dist.evaluation.statistics import metrics_table, seed_means
from genrep_dist.evaluation.tables import STATISTICS
from genrep_dist.tracking.publication import DatasetRecord, Publication
from tests.evaluation.examples import synthetic_deletion

METHODS = (Method("ntk-final/tracking", "ntk", "final", "tracking"), Method("random", "none", "none", "random"))


def publication(**changes: Any) -> Publication:
    design: dict[str, Any] = {"num_seeds": 3, "num_points": 2}
    design |= {name: changes.pop(name) for name in ("num_seeds", "signs", "fractions", "spread") if name in changes}
    deletion = synthetic_deletion(strengths=[(method.name, 2.0 - place) for place, method in enumerate(METHODS)], **design)
    points, names = auc_points(deletion), [method.name for method in METHODS]
    return Publication(
        **{
            "experiment": "demo",
            "problem": "digits",
            "plan_digest": "0123456789abcdef",
            "config_yaml": "seeds: 3\n",
            "parameters": {"recipe.epochs": "20", "seeds": "3"},
            "methods": METHODS,
            "metrics": metrics_table(points, names),
            "comparisons": STATISTICS["comparisons"].empty(),
            "seed_means": seed_means(points, names),
            "curves": {str(curve.logged_as): curve.frame for curve in Deletion().curves({"deletion": deletion})},
            "artifacts": {"report.html": b"<p>report</p>", "figures/curves.png": b"\x89PNG"},
            "tags": {"genrep.version": "0.1.0"},
            "numbers": {"test_accuracy": 0.9},
            "costs": pl.DataFrame({"method": names, "retrainings": [3, 4]}),
            "method_parameters": {"recipe.epochs": "20"},
            "method_files": {name: {"scores.csv": b"seed"} for name in names},
            "datasets": [DatasetRecord("digits train", "0" * 32, "train", 60, "store/data")],
            "began": 1_000,
            "ended": 61_000,
            **changes,
        }
    )
