"""Stage retrain: models trained without some samples, entered into the ledger. And the table of which ones are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import torch

from genrep_dist.evaluation.deletion import ASKED_SCHEMA
from genrep_dist.plan import Plan, Retraining, RetrainUnit
from genrep_dist.stages.job import Workbench, to_numpy
from genrep_dist.stages.train import check_outputs
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.training.loop import predict, train
from genrep_dist.training.randomness import Randomness


def run(unit: RetrainUnit, bench: Workbench) -> dict[str, float]:
    """Train each model of the unit and write them as one part of the ledger. Returns statistics."""
    began = time.perf_counter()
    rows = [retrain(retraining, bench) for retraining in unit.rows]
    bench.store.ledger(bench.keys.training).write(rows)
    return {"models": float(len(rows)), "seconds": time.perf_counter() - began}


def retrain(retraining: Retraining, bench: Workbench) -> LedgerRow:
    """One model, a function of (recipe, seed, removed set) alone."""
    began = time.perf_counter()
    randomness = Randomness.of_retraining(retraining.seed, retraining.policy, retraining.removed, retraining.replicate)
    kept = ~torch.isin(bench.train.ids, torch.tensor(retraining.removed, dtype=torch.int64))
    model = randomness.build(bench.problem.model).to(bench.device)
    train(model, bench.loss, bench.recipe, bench.train, randomness, kept=kept.to(bench.device))
    outputs = predict(model, bench.test.inputs)
    check_outputs(outputs, bench.test.ids, f"retraining {retraining.key[:12]}, seed {retraining.seed}")
    return LedgerRow(
        key=retraining.key,
        seed=retraining.seed,
        policy=retraining.policy,
        replicate=retraining.replicate,
        removed=retraining.removed,
        outputs=to_numpy(outputs.float()),
        seconds=time.perf_counter() - began,
    )


def removals(plan: Plan, store: Store, test_ids: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[pl.DataFrame, dict[str, Retraining]]:
    """What the judge needs from the ledger, read off the committed attributions.

    Returns the table of everything asked (ASKED_SCHEMA: one row per seed, method, test point, sign and fraction) and the distinct
    retrainings behind it, by key; a set with nothing removed is the original model and not among them.
    """
    experiment, keys = plan.experiment, plan.keys
    policy = experiment.deletion.retrain
    counts = plan.removal_counts()
    asked: list[tuple[object, ...]] = []
    unique: dict[str, Retraining] = {}
    for seed in experiment.seeds:
        positions = keys.test_positions(seed)
        outputs = store.artifact("train", keys.train(seed)).read("outputs_test")
        declared = experiment.target.output
        classes = [declared if isinstance(declared, int) else int(outputs[p].argmax()) for p in positions]
        original = keys.retraining(seed, (), policy)
        for name, method in zip(experiment.methods, experiment.parsed_methods, strict=True):
            artifact = store.artifact("attribution", keys.attribution(seed, method))
            for sign in experiment.deletion.signs:
                orders = artifact.read(f"order_{sign}")
                for point, (position, output) in enumerate(zip(positions, classes, strict=True)):
                    for fraction, count in zip(experiment.deletion.fractions, counts, strict=True):
                        removed = tuple(sorted(orders[point, :count].tolist()))
                        key = keys.retraining(seed, removed, policy)
                        if removed and key not in unique:
                            unique[key] = Retraining(key, seed, policy, removed)
                        cell = position * plan.shape.num_outputs + output
                        asked.append((seed, name, int(test_ids[position]), cell, sign, fraction, count, key, original))
    return pl.DataFrame(asked, schema=ASKED_SCHEMA, orient="row"), unique


def asked_path(plan: Plan) -> str:
    """Where the table of everything asked lies; another question has another table."""
    return f"experiments/{plan.experiment.name}/asked-{plan.keys.question}.parquet"


def retrain_units(missing: Iterable[Retraining], per_task: int) -> Iterator[RetrainUnit]:
    """Retrainings in tasks of about ``per_task``, each of one seed; in an order that depends on the keys alone."""
    pending: list[Retraining] = []
    for retraining in sorted(missing, key=lambda r: (r.seed, r.key)):
        if pending and (len(pending) == per_task or pending[0].seed != retraining.seed):
            yield RetrainUnit(tuple(pending))
            pending = []
        pending.append(retraining)
    if pending:
        yield RetrainUnit(tuple(pending))
