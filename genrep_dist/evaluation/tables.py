"""All tables of an evaluation: the tables of the statistics, and those of the metrics. The report and the tracker read them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import polars as pl

from genrep_dist.config.metrics import METRICS
from genrep_dist.errors import ConfigError, StoreError
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA, CurvePlot, Metric, MetricInfo, TableSpec, metric_infos, registered_metrics
from genrep_dist.extension import is_shipped_class, require_returned

_NAME = "[a-z][a-z0-9_]*"
_CURVE = ("method", "share", "mean", "low", "high")
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

    @property
    def measured_metrics(self) -> list[Metric]:
        """The metrics that have a measured number, in the order of the registry."""
        found = set(self.metrics["metric"])
        return [metric for metric in registered_metrics() if any(number.name in found for number in metric.numbers)]

    @property
    def curves(self) -> list[CurvePlot]:
        """The curves of all measured metrics."""
        return [curve for metric in self.measured_metrics for curve in self.curves_of(metric)]

    def curves_of(self, metric: Metric) -> list[CurvePlot]:
        """The curves of one metric. Raises ProblemError for one that cannot be drawn."""
        curves = list(metric.curves(self))
        for curve in curves:
            fits = isinstance(curve, CurvePlot) and re.fullmatch(_NAME, curve.name) and set(_CURVE) <= set(curve.frame.columns)
            require_returned(bool(fits), metric, "curves", f"CurvePlots of names {_NAME} with the columns {', '.join(_CURVE)}", curve)
        return curves


def check_names(metric: Metric) -> None:
    """Raise ConfigError for names of a metric's numbers and tables that other metrics have, or that cannot be names of files."""
    if is_shipped_class(type(metric)):
        return
    if not metric.numbers or not all(isinstance(number, MetricInfo) for number in metric.numbers):
        raise TypeError("numbers is not a tuple of MetricInfo, at least one")
    if not isinstance(metric.version, int):
        raise TypeError("version is not an integer")
    if not all(isinstance(spec, TableSpec) for spec in metric.tables.values()):
        raise TypeError("tables does not map names to TableSpec")
    others = METRICS.others(metric.name)
    published = {number.name: f"metric {other.name}" for other in others for number in other.numbers}
    tables = dict.fromkeys((*STATISTICS, "summary"), "genrep_dist")
    # Several metrics may publish rows of one table.
    tables |= {name: f"metric {other.name}" for other in others for name, spec in other.tables.items() if metric.tables.get(name) != spec}
    _check("numbers", [number.name for number in metric.numbers], metric, published)
    _check("tables", list(metric.tables), metric, tables)


def _check(what: str, names: Sequence[str], metric: Metric, taken: Mapping[str, str]) -> None:
    wrong = [name for name in names if not re.fullmatch(_NAME, name) or names.count(name) > 1]
    shared = [name for name in names if name in taken]
    if wrong or shared:
        raise ConfigError(
            f"two metrics publish {what} of one name" if shared else f"names of {what} are not usable",
            where=f"metric {metric.name}",
            expected=f"other names than those of {taken[shared[0]]}" if shared else "different names of lower-case letters, digits and _",
            got=", ".join(map(repr, shared or wrong)),
            remedy=f"rename the {what}",
        )
