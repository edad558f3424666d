"""Evaluation: all tables of an experiment, from the ledger and the stored scores. Runs in the driver and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection

import polars as pl

from genrep_dist.evaluation.metrics.base import EvaluationData, registered_metrics, sorted_points
from genrep_dist.evaluation.statistics import best, comparisons, metrics_table, ranks
from genrep_dist.evaluation.tables import STATISTICS, EvaluationTables
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.costs import method_costs
from genrep_dist.workflow.data import sample_ids
from genrep_dist.workflow.requests import StoredSeed

RANDOM = "random"


def evaluate(
    plan: Plan, store: Store, requests: pl.DataFrame, open_context: Callable[[], WorkerContext], flipped_ids: Collection[int] = ()
) -> EvaluationTables:
    """Every table of the evaluation; ``requests`` is the request table (:func:`genrep_dist.workflow.requests.retrain_requests`).

    ``flipped_ids`` are the training samples whose labels were flipped. ``open_context`` loads the problem's own code; it is called only if
    a metric reads self-influence.

    Raises NotCommittedError if a requested model is not in the ledger.
    """
    experiment = plan.experiment
    ledger = store.ledger(plan.keys.training).scan()
    ids = sample_ids(store, plan.keys.data, "train"), sample_ids(store, plan.keys.data, "test")
    seeds = {seed: StoredSeed(plan, store, seed, *ids, open_context=open_context) for seed in experiment.seeds}
    measured = [
        metric.evaluate(EvaluationData(experiment, requests.filter(pl.col("metric") == metric.name), ledger, seeds, frozenset(flipped_ids)))
        for metric in registered_metrics()
        if metric.measured(experiment)
    ]
    # Several metrics may publish rows of one table.
    frames: dict[str, list[pl.DataFrame]] = {}
    for found in measured:
        for name, table in found.tables.items():
            frames.setdefault(name, []).append(table)
    points, methods = sorted_points([found.points for found in measured]), experiment.methods
    baselines = [name for name in dict.fromkeys((experiment.baseline, RANDOM)) if name in methods]
    return EvaluationTables(
        points=points,
        metrics=metrics_table(points, methods),
        comparisons=comparisons(points, methods, baselines) if baselines else STATISTICS["comparisons"].empty(),
        ranks=ranks(points, methods),
        best=best(points, methods),
        costs=method_costs(plan, store, requests, ledger),
        **{name: pl.concat(parts) for name, parts in frames.items()},
    )
