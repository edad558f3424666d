"""One pass through the stages: what is done is skipped, what is missing is run."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.errors import CorruptError, GenRepError, StoreError, UnitError
from genrep_dist.evaluation.metrics.base import REQUEST_NULLABLE
from genrep_dist.executors.base import Display, Executor, Outcome
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.plan import Plan
from genrep_dist.runner.progress import Tally
from genrep_dist.runner.quarantine import Quarantine
from genrep_dist.store.tables import put_frame
from genrep_dist.units import Retraining, StageName, Unit
from genrep_dist.workflow.prepare import PreparedExperiment, check_room
from genrep_dist.workflow.requests import RetrainRequests, requests_path, retrain_requests
from genrep_dist.workflow.retrain import RetrainStage, RetrainUnit, original_row, retrain_units
from genrep_dist.workflow.stages import STAGES, artifacts_of
from genrep_dist.workflow.train import TrainStage

MAX_MODELS_PER_TASK = 256
_MORE_MEMORY = "lower resources.workers or resources.memory_budget, or declare resources.memory for each worker,"
TASKS_PER_SLOT = 8
"""Retraining tasks per slot at least, where there are that many models: the last ones to finish should not keep the rest waiting."""


class Workers:
    """The executor, started when there is work for it and not before. One that was given stays open."""

    def __init__(
        self, experiment: Experiment, *, serial: bool = False, address: str | None = None, executor: Executor | None = None
    ) -> None:
        self._experiment, self._serial, self._address = experiment, serial, address
        self._given = executor
        self._executor = executor
        self._lock = threading.Lock()

    def open(self) -> Executor:
        if self._executor is None:
            self._executor = make_executor(self._experiment, serial=self._serial, address=self._address)
        return self._executor

    def show(self, counts: Mapping[str, Any]) -> None:
        """Show a tally's counts where the cluster can; from any thread."""
        with self._lock:
            opened: object = self._executor
            if isinstance(opened, Display):
                opened.show(self._experiment.name, counts)

    def close(self) -> None:
        with self._lock:
            if self._executor is not None and self._given is None:
                self._executor.close()
                self._executor = None


def make_executor(experiment: Experiment, *, serial: bool = False, address: str | None = None) -> Executor:
    """The executor that an experiment's resources ask for. Ray is imported only where it is used."""
    resources = experiment.resources
    if serial:
        return SerialExecutor(resources.retries)
    from genrep_dist.executors.ray_executor import RayExecutor

    return RayExecutor(resources, address=address)


class Walk:
    """One prepared experiment on its way through the stages."""

    def __init__(self, prepared: PreparedExperiment, progress: Tally, workers: Workers) -> None:
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = prepared.store
        self._progress = progress
        self._workers = workers
        self._checked = False
        experiment = self._plan.experiment
        self._quarantine = Quarantine(self._store, experiment.name, self._plan.keys.question, 1 + experiment.resources.retries)
        self._hurt: set[int] = set()
        """Seeds of which something is in quarantine: what would be built on it is left out."""

    def run(self) -> pl.DataFrame:
        """Everything up to a filled ledger; returns the table of what was asked of it.

        Raises UnitError for units in quarantine, after all that does not need them is done.
        """
        for stage in STAGES:
            self.run_stage(stage)
        plan = self._plan
        if self._hurt:
            seeds = [seed for seed in plan.experiment.seeds if seed not in self._hurt]
            if not seeds:
                self._quarantine.refuse()
            plan = self._prepared.with_experiment(plan.experiment.with_fixed_seeds(seeds=seeds)).plan
        requests = retrain_requests(plan, self._store, self._prepared.train.ids.numpy(), self._prepared.test.ids.numpy())
        if not self._hurt:
            put_frame(self._store.objects, requests_path(plan), requests.table, table="requests", nullable=REQUEST_NULLABLE)
        self._retrain(requests, plan)
        self._quarantine.refuse()
        return requests.table

    def originals(self) -> None:
        """Just the models that are explained. Raises UnitError for units in quarantine, after the others are done."""
        self.run_stage(TrainStage.name)
        self._quarantine.refuse()

    def run_stage(self, stage: StageName) -> None:
        everything = list(artifacts_of(self._plan, stage))
        if not everything:
            return
        missing: list[Unit] = []
        total = 0
        unfinished = []
        for artifact in everything:
            if artifact.seed in self._hurt:
                continue
            total += len(artifact.units)
            if not self._store.artifact(artifact.kind, artifact.key).is_intact():
                # First: parts of another grid, left by a run with another memory budget, are no parts of this one.
                artifact.declare(self._store)
                missing.extend(artifact.missing_units(self._store))
                unfinished.append(artifact)
        self._progress.stage(stage, total, total - len(missing))
        admitted = self._quarantine.admit(missing)
        held = set(missing).difference(admitted)
        crashed = self._work(admitted, actors=STAGES.get(stage).uses_actors)
        self._hurt |= {unit.seed for unit in (*held, *(outcome.unit for outcome in crashed))}
        for artifact in unfinished:
            if artifact.seed not in self._hurt:
                artifact.commit(self._store)

    def _retrain(self, requests: RetrainRequests, plan: Plan) -> None:
        """Fill the ledger with what is asked for. Parts that cannot be read are put aside by name, and only their rows made anew."""
        ledger = self._store.ledger(self._plan.keys.training)
        for refused in ledger.refuse_damaged():
            self._progress.message(f"a part of the ledger was put aside, its models are trained again: {refused}")
        known = ledger.keys()
        lost = set(requests.table["original_key"]) - known
        if lost:
            rows = [original_row(seed, plan.keys, self._store) for seed in plan.experiment.seeds]
            ledger.write([row for row in rows if row.key in lost])
        missing = [retraining for key, retraining in requests.retrainings.items() if key not in known]
        self._progress.stage(RetrainStage.name, len(requests.retrainings), len(requests.retrainings) - len(missing))
        missing = [retraining for retraining in missing if not self._quarantine.holds(retraining.key)]
        if missing:
            crashed = self._work(retrain_units(missing, self._models_per_task(missing)), actors=False)
            # Which of a task's models it was shows when each has a process of its own; the others are trained so.
            several = [
                (outcome, outcome.unit.rows) for outcome in crashed if isinstance(outcome.unit, RetrainUnit) and len(outcome.unit.rows) > 1
            ]
            alone = [RetrainUnit(row.seed, (row,)) for _, rows in several for row in rows]
            if alone:
                self._progress.message(f"tasks have ended their processes in all attempts: {len(alone)} models are trained one by one")
                for outcome, _ in several:
                    self._progress.again(outcome)
                self._work(alone, actors=False)

    def _models_per_task(self, missing: Sequence[Retraining]) -> int:
        """So many that a task takes about the declared seconds, and that every slot gets several tasks. Changes no result.

        Models that share their steps take a part of an original's seconds: where some were retrained before, theirs count.
        """
        removed = pl.col("num_removed") > 0
        medians = [pl.col("seconds").filter(which).median().alias(name) for name, which in (("retrained", removed), ("original", ~removed))]
        retrained, original = self._store.ledger(self._plan.keys.training).scan().select(medians).collect().row(0)
        shape = self._plan.shape
        # What is mapped costs as much alone as a whole pack does: no task takes less than one.
        pack = shape.pack if shape.pack_kind == "mapped" else 1
        seconds = retrained or (original or 1.0) / pack
        by_time = self._plan.experiment.resources.task_seconds / max(seconds, 1e-6)
        by_slots = math.ceil(len(missing) / (TASKS_PER_SLOT * self._open_executor().slots))
        return max(1, min(int(by_time), by_slots, MAX_MODELS_PER_TASK) // pack) * pack

    def _open_executor(self) -> Executor:
        """The executor; the plan is checked against what it has before its first unit."""
        executor = self._workers.open()
        if not self._checked:
            check_room(self._plan, self._store, executor.slots_for, executor.memory_bytes)
            self._checked = True
        return executor

    def _work(self, units: Iterable[Unit], *, actors: bool) -> list[Outcome]:
        """Run units to their end. One failure does not hold the others; after all have ended, the first is raised. But a store that
        refuses ends it at once.

        Returns the outcomes of units that have ended their process in all attempts. All but tasks of several models are in quarantine then.
        """
        units = iter(units)
        head = next(units, None)
        if head is None:
            return []
        failures: list[Outcome] = []
        crashed: list[Outcome] = []
        ended = 0
        outcomes = self._open_executor().run(self._prepared.job, self._counted(itertools.chain([head], units)), actors=actors)
        with closing(outcomes):
            for outcome in outcomes:
                ended += 1
                self._progress.ended(outcome)
                if outcome.crashed:
                    crashed.append(outcome)
                    if outcome.unit.size == 1:
                        self._quarantine.add(outcome, self._prepared.train.ids.numpy())
                elif type(outcome.error) is StoreError:
                    # The place itself refuses, a disk that is full or a bucket that is gone: what the others make would be lost, too.
                    raise outcome.error
                elif outcome.error is not None:
                    failures.append(outcome)
        for failure in failures:
            if isinstance(failure.error, CorruptError) and failure.error.damaged:
                raise failure.error
        if not failures:
            return crashed
        first = failures[0]
        if len(failures) == 1 and isinstance(first.error, GenRepError):
            raise first.error
        raise UnitError(
            f"{len(failures)} of {ended} units of work failed; the others are done and kept",
            where=first.unit.label,
            got=f"{type(first.error).__name__}: {first.error}",
            remedy=(_MORE_MEMORY if type(first.error).__name__ in ("MemoryError", "OutOfMemoryError") else "mend the cause")
            + " and run the same command again: only what is missing is computed",
        ) from first.error

    def _counted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units, each counted when the executor draws it."""
        for unit in units:
            self._progress.taken(unit)
            yield unit
