"""Small points tables: a seed's effect, a point's effect where seeds share them, and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA

LEVELS = {"strong": 1.0, "middle": 0.7, "weak": 0.1}


def synthetic_points(
    *,
    num_seeds: int = 6,
    num_points: int | None = 3,
    levels: Mapping[str, float] = LEVELS,
    metrics: Sequence[str] = ("auc_del_negative",),
    crossed: bool = False,
    spread: float = 0.5,
) -> pl.DataFrame:
    """A full design in the order of the points table; ``num_points`` None: metrics about no test point.

    A method's numbers are its own: they do not change with the other methods of ``levels``.
    """
    rows = []
    for number, metric in enumerate(metrics):
        for method, level in levels.items():
            draw = np.random.default_rng([number, *method.encode()])
            shared = draw.normal(size=num_points or 1)
            for seed in range(num_seeds):
                network = draw.normal()
                for point in range(num_points or 1):
                    test_id = None if num_points is None else 10 * point if crossed else 1000 * seed + 10 * point
                    value = level + spread * (network + crossed * shared[point] + draw.normal())
                    rows.append((metric, method, seed, test_id, float(value)))
    return pl.DataFrame(rows, schema=POINTS_SCHEMA, orient="row").sort("metric", "method", "seed", "test_id")
