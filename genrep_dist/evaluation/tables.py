"""All tables of an evaluation: the tables of the statistics, and those of the metrics. The report and the tracker read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA, TableSpec, metric_infos, registered_metrics

_CLUSTERED = ("ci95_pooled", "ci95_clustered_low", "ci95_clustered_high")
_TWO_WAY = ("ci95_two_way_low", "ci95_two_way_high")

STATISTICS: Mapping[str, TableSpec] = {
    "points": TableSpec(POINTS_SCHEMA, ("test_id",)),
    # One row a (metric, method). Intervals are null with one seed, two-way ones also if the seeds have different test points.
    "metrics": TableSpec(
        {
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
        (*_CLUSTERED, *_TWO_WAY),
    ),
    # One row a (metric, method, baseline): method minus baseline, paired. Intervals and p-values are null as above.
    "comparisons": TableSpec(
        {
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
        ("ci95_low", "ci95_high", *_TWO_WAY, "p_value", "p_holm"),
    ),
    # Share of bootstrap draws over seeds in which method is better than other; ties count half. Null with one seed, as in best.
    "ranks": TableSpec({"metric": pl.String, "method": pl.String, "other": pl.String, "share": pl.Float64}, ("share",)),
    "best": TableSpec(
        {"metric": pl.String, "method": pl.String, "mean_rank": pl.Float64, "share_best": pl.Float64}, ("mean_rank", "share_best")
    ),
    # Distinct retrainings that a method requested, and one worker's seconds for all that it needs; shared parts count for each method.
    "costs": TableSpec({"method": pl.String, "retrainings": pl.Int64, "retraining_seconds": pl.Float64, "explanation_seconds": pl.Float64}),
}
"""The tables of :mod:`genrep_dist.evaluation.statistics`, and what each method costs."""


def table_specs() -> dict[str, TableSpec]:
    """Every table of an evaluation by name: the statistics, then the tables of the registered metrics."""
    return {**STATISTICS, **{name: spec for metric in registered_metrics() for name, spec in metric.tables.items()}}


class EvaluationTables(Mapping[str, pl.DataFrame]):
    """All tables of an evaluation by name. A table of what was not measured is empty and has its columns.

    Raises StoreError for a table that no metric publishes, or one without a column of its spec or with a column of another type.
    """

    def __init__(self, **tables: pl.DataFrame) -> None:
        specs = table_specs()
        unknown = sorted(set(tables) - set(specs))
        if unknown:
            raise StoreError("no metric publishes such a table", where=unknown[0], expected=", ".join(specs), got=", ".join(unknown))
        for name, table in tables.items():
            for column, dtype in specs[name].columns.items():
                if table.schema.get(column) != dtype:
                    raise StoreError(
                        "an evaluation table does not have the declared columns",
                        where=f"{name}, column {column}",
                        expected=str(dtype()),
                        got=str(table.schema.get(column, "no such column")),
                    )
        self._tables = {name: tables[name] if name in tables else spec.empty() for name, spec in specs.items()}

    def __getitem__(self, name: str) -> pl.DataFrame:
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def points(self) -> pl.DataFrame:
        return self["points"]

    @property
    def metrics(self) -> pl.DataFrame:
        return self["metrics"]

    @property
    def comparisons(self) -> pl.DataFrame:
        return self["comparisons"]

    @property
    def ranks(self) -> pl.DataFrame:
        return self["ranks"]

    @property
    def best(self) -> pl.DataFrame:
        return self["best"]

    @property
    def costs(self) -> pl.DataFrame:
        return self["costs"]

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the measured numbers, in the order of the registry."""
        found = set(self.metrics["metric"])
        return tuple(name for name in metric_infos() if name in found)
