"""One pass through the stages: what is done is skipped, what is missing is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.errors import GenRepError, UnitError
from genrep_dist.runtime.executor import Executor
from genrep_dist.runtime.progress import Progress
from genrep_dist.runtime.serial import SerialExecutor
from genrep_dist.stages.asked import Asked, ask, asked_path
from genrep_dist.stages.assembly import assemblies, commit, declare, missing_units
from genrep_dist.stages.prepare import Prepared, check_room
from genrep_dist.stages.retrain import original_row, retrain_units
from genrep_dist.store.tables import put_frame
from genrep_dist.units import Retraining, StageName, Unit

STAGES: tuple[StageName, ...] = ("train", "gradients", "kernels", "influence", "importances", "attributions", "diagonals")
MAX_MODELS_PER_TASK = 256
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

    def open(self) -> Executor:
        if self._executor is None:
            self._executor = make_executor(self._experiment, serial=self._serial, address=self._address)
        return self._executor

    def close(self) -> None:
        if self._executor is not None and self._given is None:
            self._executor.close()


def make_executor(experiment: Experiment, *, serial: bool = False, address: str | None = None) -> Executor:
    """The executor that an experiment's resources ask for. Ray is imported only where it is used."""
    resources = experiment.resources
    if serial:
        return SerialExecutor(resources.retries)
    from genrep_dist.runtime.ray_executor import RayExecutor

    return RayExecutor(retries=resources.retries, workers=resources.workers, address=address, num_gpus=resources.num_gpus)


class Walk:
    """One prepared experiment on its way through the stages."""

    def __init__(self, prepared: Prepared, progress: Progress, workers: Workers) -> None:
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = prepared.store
        self._progress = progress
        self._workers = workers
        self._checked = False

    def run(self) -> pl.DataFrame:
        """Everything up to a filled ledger; returns the table of what was asked of it."""
        for stage in STAGES:
            self.run_stage(stage)
        asked = ask(self._plan, self._store, self._prepared.train.ids.numpy(), self._prepared.test.ids.numpy())
        put_frame(self._store.objects, asked_path(self._plan), asked.table)
        self._retrain(asked)
        return asked.table

    def run_stage(self, stage: StageName) -> None:
        everything = list(assemblies(self._plan, stage))
        if not everything:
            return
        missing: list[Unit] = []
        total = 0
        unfinished = []
        for assembly in everything:
            total += len(assembly.units)
            if not self._store.artifact(assembly.kind, assembly.key).is_committed():
                # First: parts of another grid, left by a run with another memory budget, are no parts of this one.
                declare(self._store, assembly)
                missing.extend(missing_units(self._store, assembly))
                unfinished.append(assembly)
        self._progress.stage(stage, total, total - len(missing))
        self._work(missing, actors=stage in ("gradients", "kernels"))
        for assembly in unfinished:
            commit(self._store, assembly)

    def _retrain(self, asked: Asked) -> None:
        """Fill the ledger with what is asked for. Parts that cannot be read are put aside by name, and only their rows made anew."""
        ledger = self._store.ledger(self._plan.keys.training)
        for refused in ledger.refuse_damaged():
            self._progress.message(f"a part of the ledger was put aside, its models are trained again: {refused}")
        known = ledger.keys()
        lost = set(asked.table["original_key"]) - known
        if lost:
            rows = [original_row(seed, self._plan.keys, self._store) for seed in self._plan.experiment.seeds]
            ledger.write([row for row in rows if row.key in lost])
        missing = [retraining for key, retraining in asked.unique.items() if key not in known]
        self._progress.stage("retrain", len(asked.unique), len(asked.unique) - len(missing))
        if missing:
            self._work(retrain_units(missing, self._models_per_task(missing)), actors=False)

    def _models_per_task(self, missing: Sequence[Retraining]) -> int:
        """So many that a task takes about the declared seconds, and that every slot gets several tasks. Changes no result.

        Models that share their steps take a part of an original's seconds: where some were retrained before, theirs count.
        """
        removed = pl.col("num_removed") > 0
        medians = [pl.col("seconds").filter(which).median().alias(name) for name, which in (("retrained", removed), ("original", ~removed))]
        retrained, original = self._store.ledger(self._plan.keys.training).scan().select(medians).collect().row(0)
        seconds = retrained or original or 1.0
        by_time = self._plan.experiment.resources.task_seconds / max(seconds, 1e-6)
        by_slots = math.ceil(len(missing) / (TASKS_PER_SLOT * self._open_executor().slots))
        return max(1, min(int(by_time), by_slots, MAX_MODELS_PER_TASK))

    def _open_executor(self) -> Executor:
        """The executor; the plan is checked against what it has before its first unit."""
        executor = self._workers.open()
        if not self._checked:
            check_room(self._plan, self._store, executor.slots, executor.memory_bytes)
            self._checked = True
        return executor

    def _work(self, units: Iterable[Unit], *, actors: bool) -> None:
        """Run units to their end. One failure does not hold the others; after all have ended, the first is raised."""
        units = list(units)
        if not units:
            return
        failures = []
        for outcome in self._open_executor().run(self._prepared.job, units, actors=actors):
            if outcome.error is not None:
                failures.append(outcome)
                self._progress.message(f"failed after {outcome.attempts} attempts: {outcome.unit.label}")
            else:
                self._progress.advance(int(outcome.statistics.get("models", 1)), outcome.statistics)
        if not failures:
            return
        first = failures[0]
        if len(failures) == 1 and isinstance(first.error, GenRepError):
            raise first.error
        raise UnitError(
            f"{len(failures)} of {len(units)} units of work failed; the others are done and kept",
            where=first.unit.label,
            got=f"{type(first.error).__name__}: {first.error}",
            remedy="mend the cause and run the same command again: only what is missing is computed",
        ) from first.error
