"""Stage retrain: models trained without some samples, or with other weights or labels of them, entered into the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.config.keys import Keys
from genrep_dist.core.policies import is_rebatched
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.units import Retraining, Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, Stage
from genrep_dist.workflow.blocks import cached_bytes
from genrep_dist.workflow.train import check_outputs, model_bytes, output_bytes
from genrep_dist.workflow.training_states import StoredStates

if TYPE_CHECKING:
    from genrep_dist.training.loop import TrainingRun
    from genrep_dist.workflow.context import WorkerContext

MAX_MODELS_PER_TASK = 256
REMOVED_BYTES = 64
"""Bytes that one removed sample's id takes in a unit, in a row and on its way to the ledger."""


@dataclass(frozen=True)
class RetrainUnit(Unit):
    """Retrainings of one seed that one task does and writes as one part of the ledger."""

    rows: tuple[Retraining, ...]
    stage: ClassVar[str] = "retrain"

    @property
    def label(self) -> str:
        return f"retrain {len(self.rows)} models, seed={self.seed}, first key {self.rows[0].key[:12]}"

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def ledger_key(self) -> str | None:
        return self.rows[0].key if len(self.rows) == 1 else None

    def samples(self, train_ids: npt.NDArray[np.int64]) -> tuple[str, list[int]]:
        del train_ids
        first = self.rows[0]
        return "with other samples" if first.weights or first.labels else "without samples", first.change.samples


class RetrainStage(Stage[RetrainUnit]):
    """It fills the ledger and has no artifacts: its units follow from the removal orders, and the driver makes them."""

    name = "retrain"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        del plan
        return iter(())

    def run(self, unit: RetrainUnit, context: WorkerContext) -> dict[str, float]:
        """Train the models of the unit, some at a time, and write them as one part of the ledger. Returns statistics.

        Models that diverge or fail do not stop the others: these are written, then the first one's error is raised.
        """
        from genrep_dist.core.tensors import OUT_OF_MEMORY

        began = time.perf_counter()
        size = context.trainer.pack_size(len(unit.rows)) if len(unit.rows) > 1 else 1
        rows: list[LedgerRow] = []
        errors: list[Exception] = []
        seconds = context.experiment.resources.checkpoint_seconds
        states = None if seconds is None else StoredStates(context.store.objects, context.keys.training, seconds)
        for pack in _packs(unit.rows, size):
            for result in _retrained(pack, context, states):
                if isinstance(result, LedgerRow):
                    rows.append(result)
                else:
                    errors.append(result)
        if rows:
            context.store.ledger(context.keys.training).write(rows)
        if states is not None:
            states.delete()
        if errors:
            # Where memory is short, another attempt may succeed.
            raise next((error for error in errors if isinstance(error, OUT_OF_MEMORY)), errors[0])
        training = sum(row.seconds for row in rows)
        return {"models": float(len(rows)), "seconds": time.perf_counter() - began, "training_seconds": training, "pack_size": float(size)}

    def plan(self, plan: Plan) -> StagePlan | None:
        count, shape = plan.retrainings_at_most, plan.shape
        row = 8 * shape.num_test * shape.num_outputs + 8 * plan.most_removed
        what = f"{plan.retrainings_requested} requested, at most {count} distinct"
        # A task holds the rows of its models until it writes them.
        rows = max_models_per_task(plan) * (output_bytes(plan) + REMOVED_BYTES * plan.most_removed)
        return StagePlan(self.name, what, count, count * row, model_bytes(plan, _models_per_step(plan)) + rows + cached_bytes(plan))

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return plan.retrainings_at_most * rates.retrain_seconds


def _models_per_step(plan: Plan) -> int:
    """Models that share a step: as many as there are, but a mapped pack has all its slots always."""
    return plan.shape.pack if plan.shape.pack_kind == "mapped" else max(1, min(plan.shape.pack, plan.retrainings_at_most))


def max_models_per_task(plan: Plan) -> int:
    """Models of one retraining task at most: their rows of the ledger fit a quarter of the memory budget. At least one pack."""
    row = output_bytes(plan) + REMOVED_BYTES * plan.most_removed
    return max(plan.shape.pack, min(MAX_MODELS_PER_TASK, plan.retrainings_at_most, plan.budget_bytes // 4 // max(1, row)))


def _packs(rows: Sequence[Retraining], size: int) -> Iterator[Sequence[Retraining]]:
    """``rows`` in packs of at most ``size`` models that take the same steps: with new batches, those that keep equally many rows."""
    alike: dict[int | None, list[Retraining]] = {}
    for row in rows:
        alike.setdefault(len(row.removed) if is_rebatched(row.policy) else None, []).append(row)
    for some in alike.values():
        packs = -(-len(some) // size)
        # Equal packs: a small one at the end would cost most of what a whole one does.
        for index in range(packs):
            yield some[index::packs]


def retrain(retraining: Retraining, context: WorkerContext) -> LedgerRow:
    """One model, a function of (recipe, seed, removed set) alone. Raises NonFiniteError where it diverges."""
    result = _retrain_pack((retraining,), context)[0]
    if isinstance(result, LedgerRow):
        return result
    raise result


def _retrained(retrainings: Sequence[Retraining], context: WorkerContext, states: StoredStates | None) -> Sequence[LedgerRow | Exception]:
    try:
        return _retrain_pack(retrainings, context, states)
    except ProblemError as error:
        return [error]


def _retrain_pack(
    retrainings: Sequence[Retraining], context: WorkerContext, states: StoredStates | None = None
) -> list[LedgerRow | Exception]:
    """The row of each retraining, or the error of the one that diverged or failed. Each is what it would be alone."""
    from genrep_dist.workflow.context import to_numpy

    began = time.perf_counter()
    runs = [_as_run(retraining, context) for retraining in retrainings]
    results: list[LedgerRow | Exception] = []
    trained = context.trainer.train_all(runs, states)
    outputs = [model if isinstance(model, Exception) else context.predict(model, context.test.inputs) for model in trained]
    seconds = (time.perf_counter() - began) / len(retrainings)
    for retraining, run, output in zip(retrainings, runs, outputs, strict=True):
        if isinstance(output, Exception):
            results.append(output)
            continue
        try:
            check_outputs(output, context.test.ids, run.description)
        except NonFiniteError as error:
            results.append(error)
            continue
        results.append(
            LedgerRow(
                key=retraining.key,
                seed=retraining.seed,
                policy=retraining.policy,
                replicate=retraining.replicate,
                removed=retraining.removed,
                outputs=to_numpy(output.double()),
                seconds=seconds,
                weights=retraining.weights,
                labels=retraining.labels,
            )
        )
    return results


def _as_run(retraining: Retraining, context: WorkerContext) -> TrainingRun:
    import torch

    from genrep_dist.training.loop import TrainingRun
    from genrep_dist.training.randomness import Randomness
    from genrep_dist.workflow.changes import targets_of, weights_of

    randomness = Randomness.for_retraining(retraining.seed, retraining.policy, retraining.change, retraining.replicate)
    kept = ~torch.isin(context.train.ids, torch.tensor(retraining.removed, dtype=torch.int64))
    without = ", ".join(map(str, retraining.removed[:5])) + (", ..." if len(retraining.removed) > 5 else "")
    what = f"retraining {retraining.key[:12]}, seed {retraining.seed}, without {len(retraining.removed)} samples ({without})"
    if retraining.weights or retraining.labels:
        what += f", {len(retraining.weights)} with other weights, {len(retraining.labels)} with other labels"
    change = retraining.change
    outputs = context.num_outputs(retraining.seed) if change.labels else 1
    weights, targets = weights_of(change, context.train), targets_of(change, context.train, outputs, what)
    return TrainingRun(randomness, kept.to(context.device), what, is_rebatched(retraining.policy), weights, targets)


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
            yield RetrainUnit(pending[0].seed, tuple(pending))
            pending = []
        pending.append(retraining)
    if pending:
        yield RetrainUnit(pending[0].seed, tuple(pending))
