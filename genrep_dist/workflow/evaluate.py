"""Evaluation: all tables of an experiment, from the ledger and the stored scores. Runs in the driver and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection

import polars as pl

from genrep_dist.config.metrics import measured_metrics
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA, EvaluationData, Metric, MetricTables, TableSpec
from genrep_dist.evaluation.statistics import best, comparisons, metrics_table, ranks
from genrep_dist.evaluation.tables import STATISTICS, EvaluationTables
from genrep_dist.extension import require_returned, returned
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.costs import method_costs
from genrep_dist.workflow.explained_ledger import explained_ledger
from genrep_dist.workflow.requests import StoredSeed
from genrep_dist.workflow.sample_ids import sample_ids


def evaluate(
    plan: Plan, store: Store, requests: pl.DataFrame, open_context: Callable[[], WorkerContext], flipped_ids: Collection[int] = ()
) -> EvaluationTables:
    """Every table of the evaluation; ``requests`` is the request table (:func:`genrep_dist.workflow.requests.retrain_requests`).

    ``flipped_ids`` are the training samples whose labels were flipped. ``open_context`` loads the problem's own code; it is called only if
    a metric reads self-influence, or if what is explained is not an output.

    Raises NotCommittedError if a requested model is not in the ledger.
    """
    experiment = plan.experiment
    ledger = store.ledger(plan.keys.training).scan()
    ids = sample_ids(store, plan.keys.data, "train"), sample_ids(store, plan.keys.data, "test")
    explained = explained_ledger(plan, ledger, requests, open_context)
    seeds = {seed: StoredSeed(plan, store, seed, *ids, open_context=open_context) for seed in experiment.seeds}
    measured = [
        _evaluated(metric, EvaluationData(experiment, requests.filter(metric=metric.name), explained, seeds, frozenset(flipped_ids)))
        for metric in measured_metrics(experiment)
    ]
    # Several metrics may publish rows of one table.
    frames: dict[str, list[pl.DataFrame]] = {}
    for found in measured:
        for name, table in found.tables.items():
            frames.setdefault(name, []).append(table)
    points, methods = pl.concat([found.points for found in measured]).sort("metric", "method", "seed", "test_id"), experiment.methods
    baselines = experiment.baselines
    return EvaluationTables(
        points=points,
        metrics=metrics_table(points, methods),
        comparisons=comparisons(points, methods, baselines) if baselines else STATISTICS["comparisons"].empty(),
        ranks=ranks(points, methods),
        best=best(points, methods),
        costs=method_costs(plan, store, requests, ledger),
        **{name: pl.concat(parts) for name, parts in frames.items()},
    )


def _evaluated(metric: Metric, data: EvaluationData) -> MetricTables:
    """What ``metric`` has measured, its points by POINTS_SCHEMA. Raises ProblemError for other tables than it declares."""
    experiment, measured = data.experiment, returned(MetricTables, metric, "evaluate", metric.evaluate(data))
    points = _cast_points(metric, returned(pl.DataFrame, metric, "evaluate", measured.points))
    declared = {"metric": metric.measured(experiment), "method": experiment.methods, "seed": experiment.seeds}
    for column, values in declared.items():
        others = sorted(set(points[column]) - set(values))
        require_returned(not others, metric, "evaluate", f"points whose {column} is one of {', '.join(map(str, values))}", f"{others[:5]}")
    unknown = sorted(set(measured.tables) - set(metric.tables))
    require_returned(not unknown, metric, "evaluate", f"its declared tables ({', '.join(metric.tables) or 'none'})", ", ".join(unknown))
    for name, table in measured.tables.items():
        _check_frame(metric, name, returned(pl.DataFrame, metric, "evaluate", table), metric.tables[name])
    return MetricTables(points, measured.tables)


def _cast_points(metric: Metric, points: pl.DataFrame) -> pl.DataFrame:
    try:
        cast = points.select(pl.col(column).cast(dtype) for column, dtype in POINTS_SCHEMA.items())
    except pl.exceptions.PolarsError:
        cast = points  # its columns are in the message
    _check_frame(metric, "points", cast, TableSpec(POINTS_SCHEMA, ("test_id",)))
    return cast


def _check_frame(metric: Metric, name: str, table: pl.DataFrame, spec: TableSpec) -> None:
    """Raise ProblemError for a table without one of its declared columns, or with nulls where none may be."""
    expected = ", ".join(f"{column} {dtype()}" for column, dtype in spec.columns.items())
    got = ", ".join(f"{column} {dtype}" for column, dtype in table.schema.items())
    fits = all(table.schema.get(column) == dtype for column, dtype in spec.columns.items())
    require_returned(fits, metric, "evaluate", f"the columns {expected}", got, f"table {name}")
    nulls = [column for column in spec.columns if table[column].null_count() and column not in spec.nullable]
    require_returned(not nulls, metric, "evaluate", "no nulls", f"nulls in {', '.join(nulls)}", f"table {name}")
