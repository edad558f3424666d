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
from genrep_dist.errors import CorruptError, FailureKind, GenRepError, UnitError
from genrep_dist.executors.base import Executor, Outcome, SupportsMetrics
from genrep_dist.executors.registry import make_executor
from genrep_dist.plan import Plan
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.quarantine import Quarantine
from genrep_dist.store.tables import put_frame
from genrep_dist.units import Retraining, RetrainUnit, StageName, Unit
from genrep_dist.workflow.artifacts import assemblies, commit, declare, missing_units
from genrep_dist.workflow.prepare import Prepared, check_room
from genrep_dist.workflow.requests import NULLABLE, Asked, ask, asked_path
from genrep_dist.workflow.retrain import original_row, retrain_units

STAGES: tuple[StageName, ...] = ("train", "gradients", "kernels", "influence", "importances", "attributions", "diagonals")
MAX_MODELS_PER_TASK = 256
_MORE_MEMORY = "lower resources.workers or resources.memory_budget, or declare resources.memory for each worker,"
TASKS_PER_SLOT = 8
"""Retraining tasks per slot at least, where there are that many models: the last ones to finish should not keep the rest waiting."""


class Workers:
    """The executor, started when there is work for it and not before. One that was given stays open."""

    def __init__(
        self, experiment: Experiment, *, serial: bool = False, address: str | None = None, executor: Executor | str | None = None
    ) -> None:
        self._experiment, self._address = experiment, address
        self._name = executor if isinstance(executor, str) else "serial" if serial else "ray"
        self._given = None if isinstance(executor, str) else executor
        self._executor = self._given
        self._lock = threading.Lock()

    def open(self) -> Executor:
        if self._executor is None:
            self._executor = make_executor(self._name, self._experiment.resources, address=self._address)
        return self._executor

    def export_metrics(self, counts: Mapping[str, Any]) -> None:
        """Export progress counts to the cluster, if its executor supports that. Thread-safe."""
        with self._lock:
            opened: object = self._executor
            if isinstance(opened, SupportsMetrics):
                opened.export_metrics(self._experiment.name, counts)

    def close(self) -> None:
        with self._lock:
            if self._executor is not None and self._given is None:
                self._executor.close()
                self._executor = None


class Walk:
    """One prepared experiment on its way through the stages."""

    def __init__(self, prepared: Prepared, progress: ProgressCounter, workers: Workers) -> None:
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
                self._quarantine.raise_if_skipped()
            plan = self._prepared.of(plan.experiment.plain(seeds=seeds)).plan
        asked = ask(plan, self._store, self._prepared.train.ids.numpy(), self._prepared.test.ids.numpy())
        if not self._hurt:
            put_frame(self._store.objects, asked_path(plan), asked.table, table="asked", nullable=NULLABLE)
        self._retrain(asked, plan)
        self._quarantine.raise_if_skipped()
        return asked.table

    def originals(self) -> None:
        """Just the models that are explained. Raises UnitError for units in quarantine, after the others are done."""
        self.run_stage("train")
        self._quarantine.raise_if_skipped()

    def run_stage(self, stage: StageName) -> None:
        everything = list(assemblies(self._plan, stage))
        if not everything:
            return
        missing: list[Unit] = []
        total = 0
        unfinished = []
        for assembly in everything:
            if assembly.seed in self._hurt:
                continue
            total += len(assembly.units)
            if not self._store.artifact(assembly.kind, assembly.key).is_intact():
                # First: parts of another grid, left by a run with another memory budget, are no parts of this one.
                declare(self._store, assembly)
                missing.extend(missing_units(self._store, assembly))
                unfinished.append(assembly)
        self._progress.stage(stage, total, total - len(missing))
        admitted = self._quarantine.runnable(missing)
        held = set(missing).difference(admitted)
        crashed = self._work(admitted, actors=stage in ("gradients", "kernels"))
        self._hurt |= {_seed(unit) for unit in (*held, *(outcome.unit for outcome in crashed))}
        for assembly in unfinished:
            if assembly.seed not in self._hurt:
                commit(self._store, assembly)

    def _retrain(self, asked: Asked, plan: Plan) -> None:
        """Train the requested models that the ledger lacks. Damaged parts are moved away, and only their models are trained again."""
        ledger = self._store.ledger(self._plan.keys.training)
        for damaged in ledger.move_damaged_parts():
            self._progress.message(f"a part of the ledger was damaged, its models are trained again: {damaged}")
        known = ledger.keys()
        lost = set(asked.table["original_key"]) - known
        if lost:
            rows = [original_row(seed, plan.keys, self._store) for seed in plan.experiment.seeds]
            ledger.write([row for row in rows if row.key in lost])
        missing = [retraining for key, retraining in asked.unique.items() if key not in known]
        self._progress.stage("retrain", len(asked.unique), len(asked.unique) - len(missing))
        missing = [retraining for retraining in missing if not self._quarantine.contains(retraining.key)]
        if missing:
            crashed = self._work(retrain_units(missing, self._models_per_task(missing)), actors=False)
            # Which of a task's models it was shows when each has a process of its own; the others are trained so.
            several = [
                (outcome, outcome.unit.rows) for outcome in crashed if isinstance(outcome.unit, RetrainUnit) and len(outcome.unit.rows) > 1
            ]
            alone = [RetrainUnit((row,)) for _, rows in several for row in rows]
            if alone:
                self._progress.message(f"tasks have ended their processes in all attempts: {len(alone)} models are trained one by one")
                for outcome, _ in several:
                    self._progress.unit_split(outcome)
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
        pack = shape.pack if shape.arithmetic == "mapped" else 1
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
        """Run all units, then raise the first failure. A failure of the store is raised at once, because nothing could be written.

        Returns the outcomes of units that crashed in every attempt. Those of a single model, or of none, are put in quarantine.
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
                self._progress.unit_ended(outcome)
                if outcome.crashed:
                    crashed.append(outcome)
                    if not isinstance(outcome.unit, RetrainUnit) or len(outcome.unit.rows) == 1:
                        self._quarantine.add(outcome, self._prepared.train.ids.numpy())
                elif outcome.failure is not None:
                    if outcome.failure.kind is FailureKind.STORE:
                        raise outcome.failure.error
                    failures.append(outcome)
        if not failures:
            return crashed
        for failed in failures:
            if isinstance(failed.error, CorruptError) and failed.error.damaged is not None:
                raise failed.error
        first = failures[0]
        if len(failures) == 1 and isinstance(first.error, GenRepError):
            raise first.error
        out_of_memory = first.failure is not None and first.failure.kind is FailureKind.OUT_OF_MEMORY
        raise UnitError(
            f"{len(failures)} of {ended} units of work failed; the others are done and kept",
            where=first.unit.label,
            got=f"{type(first.error).__name__}: {first.error}",
            remedy=(_MORE_MEMORY if out_of_memory else "fix the cause")
            + " and run the same command again: only what is missing is computed",
        ) from first.error

    def _counted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units, each counted when the executor draws it."""
        for unit in units:
            self._progress.unit_started(unit)
            yield unit


def _seed(unit: Unit) -> int:
    return unit.rows[0].seed if isinstance(unit, RetrainUnit) else unit.seed
