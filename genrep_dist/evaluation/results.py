"""All that was judged, as one object of tables: what the report and the tracker read, so that neither computes a number itself.

A table of what was not measured is empty and has its columns all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.metrics import METRICS, POINTS_SCHEMA

Schema = Mapping[str, type[pl.DataType]]

SCHEMAS: Mapping[str, Schema] = {
    "points": POINTS_SCHEMA,
    # One row a (metric, method). Intervals are null with one seed, two-way ones also where the design is not crossed.
    "metrics": {
        "metric": pl.String,
        "method": pl.String,
        "mean": pl.Float64,
        "ci95_pooled": pl.Float64,  # a half-width
        "ci95_clustered_low": pl.Float64,
        "ci95_clustered_high": pl.Float64,
        "ci95_two_way_low": pl.Float64,
        "ci95_two_way_high": pl.Float64,
        "num_seeds": pl.Int64,
        "num_points": pl.Int64,  # of each seed
    },
    # One row a (metric, method, baseline): method minus baseline, paired. Intervals and p-values are null with one seed; two-way as above.
    "comparisons": {
        "metric": pl.String,
        "method": pl.String,
        "baseline": pl.String,
        "mean": pl.Float64,
        "ci95_low": pl.Float64,
        "ci95_high": pl.Float64,
        "ci95_two_way_low": pl.Float64,
        "ci95_two_way_high": pl.Float64,
        "p_value": pl.Float64,
        "p_holm": pl.Float64,  # over all rows of one metric
        "num_seeds": pl.Int64,
        "num_points": pl.Int64,
    },
    # Share of bootstrap draws over seeds in which method is better than other; ties count half. Null with one seed, as in best.
    "ranks": {"metric": pl.String, "method": pl.String, "other": pl.String, "share": pl.Float64},
    "best": {"metric": pl.String, "method": pl.String, "mean_rank": pl.Float64, "share_best": pl.Float64},
    # How well replicates agree, and what a perfect method would reach; null where it cannot be known.
    "ceilings": {"metric": pl.String, "seed": pl.Int64, "test_id": pl.Int64, "reliability": pl.Float64, "ceiling": pl.Float64},
    # Distinct retrainings that a method asked for, and one worker's seconds of all it needs; shared parts count for each method.
    "costs": {"method": pl.String, "retrainings": pl.Int64, "retraining_seconds": pl.Float64, "explanation_seconds": pl.Float64},
    # Smallest removal that flips the predicted class; num_removed and fraction are null where none did.
    "brittleness": {
        "seed": pl.Int64,
        "method": pl.String,
        "test_id": pl.Int64,
        "num_removed": pl.Int64,
        "fraction": pl.Float64,
        "flipped": pl.Boolean,
    },
    # Mean curve over seeds: share of the flipped labels found against the share of the training set looked at.
    "inspection": {"method": pl.String, "inspected": pl.Float64, "found": pl.Float64},
    # Every replicate of every deletion, before the mean.
    "replicates": {
        "seed": pl.Int64,
        "method": pl.String,
        "test_id": pl.Int64,
        "sign": pl.String,
        "fraction": pl.Float64,
        "replicate": pl.Int64,
        "num_removed": pl.Int64,
        "score_retrained": pl.Float64,
        "delta": pl.Float64,
    },
}
"""Table -> columns and their types."""

_CLUSTERED = ("ci95_pooled", "ci95_clustered_low", "ci95_clustered_high")
_TWO_WAY = ("ci95_two_way_low", "ci95_two_way_high")
NULLABLE: Mapping[str, tuple[str, ...]] = {
    "points": ("test_id",),
    "metrics": (*_CLUSTERED, *_TWO_WAY),
    "comparisons": ("ci95_low", "ci95_high", *_TWO_WAY, "p_value", "p_holm"),
    "ranks": ("share",),
    "best": ("mean_rank", "share_best"),
    "ceilings": ("reliability", "ceiling"),
    "brittleness": ("num_removed", "fraction"),
}
"""Table -> columns that may hold nulls; all others hold none."""


def empty(table: str) -> pl.DataFrame:
    """The table of that name without rows."""
    return pl.DataFrame(schema=SCHEMAS[table])


@dataclass(frozen=True, eq=False)
class Judged:
    """The tables of :data:`SCHEMAS`; ``Judged()`` is all of them empty. StoreError for a table without a column, or with another type."""

    points: pl.DataFrame = field(default_factory=lambda: empty("points"))
    metrics: pl.DataFrame = field(default_factory=lambda: empty("metrics"))
    comparisons: pl.DataFrame = field(default_factory=lambda: empty("comparisons"))
    ranks: pl.DataFrame = field(default_factory=lambda: empty("ranks"))
    best: pl.DataFrame = field(default_factory=lambda: empty("best"))
    ceilings: pl.DataFrame = field(default_factory=lambda: empty("ceilings"))
    costs: pl.DataFrame = field(default_factory=lambda: empty("costs"))
    brittleness: pl.DataFrame = field(default_factory=lambda: empty("brittleness"))
    inspection: pl.DataFrame = field(default_factory=lambda: empty("inspection"))
    replicates: pl.DataFrame = field(default_factory=lambda: empty("replicates"))

    def __post_init__(self) -> None:
        for table in fields(self):
            found: pl.DataFrame = getattr(self, table.name)
            for column, dtype in SCHEMAS[table.name].items():
                if found.schema.get(column) != dtype:
                    raise StoreError(
                        "a table of the judged results does not fit its schema",
                        where=f"{table.name}, column {column}",
                        expected=str(dtype()),
                        got=str(found.schema.get(column, "no such column")),
                    )

    @property
    def measured(self) -> tuple[str, ...]:
        """The metrics that have a row, in the order of METRICS."""
        found = set(self.metrics["metric"])
        return tuple(name for name in METRICS if name in found)
