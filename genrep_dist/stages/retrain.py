"""Stage retrain: models trained without some samples, entered into the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import torch

from genrep_dist.keys import Keys
from genrep_dist.stages.job import Workbench, to_numpy
from genrep_dist.stages.train import check_outputs
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.training.loop import predict, train
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import Retraining, RetrainUnit


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
        outputs=to_numpy(outputs.double()),
        seconds=time.perf_counter() - began,
    )


def original_row(seed: int, keys: Keys, store: Store) -> LedgerRow:
    """The ledger's row of an original model, from its own artifact."""
    artifact = store.artifact("train", keys.train(seed))
    outputs, seconds = artifact.read("outputs_test"), float(artifact.manifest()["seconds"])
    return LedgerRow(keys.retraining(seed, (), "same"), seed, "same", 0, (), outputs, seconds)


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
