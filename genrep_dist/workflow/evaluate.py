"""The judge: every metric of an experiment, read off the ledger and the stored scores. Runs in the driver; trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.evaluation.brittleness import brittleness_points, brittleness_table
from genrep_dist.evaluation.deletion import deletion_table, replicates_table
from genrep_dist.evaluation.ledger_scores import scores
from genrep_dist.evaluation.metrics import POINTS_SCHEMA
from genrep_dist.evaluation.mislabel import inspection_curve, mislabel_points
from genrep_dist.evaluation.results import Judged, empty
from genrep_dist.evaluation.statistics import auc_points
from genrep_dist.evaluation.subsets import noise_ceiling, subset_correlations
from genrep_dist.evaluation.summaries import best, comparisons, metrics_table, ranks
from genrep_dist.plan import Plan, has_self_influence
from genrep_dist.store import Store
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.costs import method_costs
from genrep_dist.workflow.data import sample_ids
from genrep_dist.workflow.diagonals import self_influence_of
from genrep_dist.workflow.requests import Point, asked_for, subsets

Array = npt.NDArray[np.float64]
SUBSET_METRICS = {"lds": "lds", "loo": "loo_correlation"}


def judge(
    plan: Plan, store: Store, table: pl.DataFrame, bench: Callable[[], WorkerContext], flipped_ids: Collection[int] = ()
) -> tuple[pl.DataFrame, Judged]:
    """The deletion table and everything that was judged; ``table`` is what was asked of the ledger (:mod:`genrep_dist.workflow.requests`).

    ``flipped_ids`` are the training samples whose labels were flipped; only for these the problem's own code is needed, and ``bench``
    is called.

    Raises NotCommittedError when a model that is asked for is not in the ledger.
    """
    experiment = plan.experiment
    ledger = store.ledger(plan.keys.training).scan()
    deletion = deletion_table(asked_for(table, "deletion"), ledger)
    points, tables = [auc_points(deletion)], {}
    if experiment.deletion.replicates > 1:
        tables["replicates"] = replicates_table(asked_for(table, "deletion"), ledger)
    if experiment.brittleness is not None:
        largest, _ = experiment.brittleness.removals(plan.shape.num_train)[-1]
        tables["brittleness"] = brittleness_table(asked_for(table, "brittleness"), ledger, plan.shape.num_outputs)
        points.append(brittleness_points(tables["brittleness"], largest))
    if experiment.lds is not None or experiment.loo is not None:
        values, ceilings = _subset_metrics(store, plan, table, ledger)
        points.append(values)
        tables["ceilings"] = ceilings
    if experiment.problem.flip_labels is not None:
        values, tables["inspection"] = _mislabel(bench(), plan, flipped_ids)
        points.append(values)
    everything = pl.concat(points).select(list(POINTS_SCHEMA)).sort(list(POINTS_SCHEMA)[:-1])
    names = experiment.methods
    baselines = [name for name in dict.fromkeys((experiment.baseline, "random")) if name in names]
    return deletion, Judged(
        points=everything,
        metrics=metrics_table(everything, names),
        comparisons=comparisons(everything, names, baselines) if baselines else empty("comparisons"),
        ranks=ranks(everything, names),
        best=best(everything, names),
        costs=method_costs(plan, store, table, ledger),
        **tables,
    )


def _subset_metrics(store: Store, plan: Plan, table: pl.DataFrame, ledger: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Points of LDS and leave-one-out correlation, and their noise ceilings."""
    values: list[dict[str, Any]] = []
    ceilings: list[dict[str, Any]] = []
    found = {metric: _subset_scores(store, plan, asked_for(table, metric), ledger) for metric in SUBSET_METRICS}
    all_test_ids = sample_ids(store, plan.keys.data, "test")
    for seed in plan.experiment.seeds:
        test_ids = all_test_ids[plan.keys.test_positions(seed)].tolist()
        for metric, section, removed in subsets(plan, seed):
            scored = found[metric].filter(pl.col("seed") == seed)["score"].to_numpy()
            outputs = scored.reshape(section.replicates, len(removed), len(test_ids))
            places = [{"metric": SUBSET_METRICS[metric], "seed": seed, "test_id": test_id} for test_id in test_ids]
            for name in plan.experiment.methods:
                correlations, _ = subset_correlations(_phi(store, plan, name, seed), removed, outputs.mean(axis=0))
                values += [{**place, "method": name, "value": float(value)} for place, value in zip(places, correlations, strict=True)]
            known = noise_ceiling(outputs)
            for point, place in enumerate(places):
                reliability, ceiling = (None, None) if known is None else (float(part[point]) for part in known)
                ceilings.append({**place, "reliability": reliability, "ceiling": ceiling})
    return pl.DataFrame(values, schema=POINTS_SCHEMA), pl.DataFrame(ceilings, schema=empty("ceilings").schema)


def _subset_scores(store: Store, plan: Plan, asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """The explained output of each model at each of its seed's test points, sorted by seed, replicate, subset and test point."""
    places = []
    for seed in plan.experiment.seeds:
        outputs = store.artifact("train", plan.keys.train(seed)).read("outputs_test")
        points = [Point.of(row, outputs[row], plan.experiment.target.output) for row in plan.keys.test_positions(seed)]
        places += [(seed, number, p.row * plan.shape.num_outputs + p.output) for number, p in enumerate(points)]
    cells = pl.DataFrame(places, schema={"seed": pl.Int64, "point": pl.Int64, "output_position": pl.Int64}, orient="row")
    wanted = asked.join(cells, on="seed")
    found = scores(wanted.select("key", "output_position").unique(), ledger)
    return wanted.join(found, on=["key", "output_position"], how="left").sort("seed", "replicate", "subset", "point")


def _mislabel(bench: WorkerContext, plan: Plan, flipped_ids: Collection[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Points of the mislabel metrics, and each method's mean inspection curve over seeds."""
    ids = bench.train.ids.numpy()
    flipped = np.isin(ids, list(flipped_ids))
    found = {
        (name, seed): self_influence_of(method, seed, bench).numpy()
        for name, method in zip(plan.experiment.methods, plan.experiment.parsed_methods, strict=True)
        if has_self_influence(plan.experiment, method)
        for seed in plan.experiment.seeds
    }
    curves = pl.concat(
        [
            inspection_curve(values, flipped, ids).with_columns(method=pl.lit(name), seed=pl.lit(seed))
            for (name, seed), values in found.items()
        ]
    )
    mean = curves.group_by("method", "inspected").agg(pl.col("found").sort_by("seed").mean()).sort("method", "inspected")
    return mislabel_points(found, flipped, ids), mean.select(list(empty("inspection").columns))


def _phi(store: Store, plan: Plan, name: str, seed: int) -> Array:
    phi: Array = store.artifact("attribution", plan.keys.attribution(seed, plan.experiment.method(name))).read("phi")
    return phi
