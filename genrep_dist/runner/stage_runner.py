"""Runs the stages of a prepared experiment: what is done is skipped, what is missing is computed."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.core.policies import RetrainPolicy
from genrep_dist.errors import CorruptError, FailureKind, GenRepError, OutOfTimeError, UnitError
from genrep_dist.evaluation.metrics.base import REQUEST_NULLABLE
from genrep_dist.executors.base import Executor, Outcome, SupportsMetrics
from genrep_dist.executors.registry import EXECUTORS
from genrep_dist.plan import Plan
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.quarantine import Quarantine
from genrep_dist.store.claims import Claims
from genrep_dist.store.ledger import Ledger
from genrep_dist.store.tables import put_frame
from genrep_dist.units import Retraining, StageName, Unit
from genrep_dist.workflow.base import ArtifactSpec
from genrep_dist.workflow.estimates import seconds_in_packs
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.requests import RetrainRequests, finished_requests, requests_path, retrain_requests
from genrep_dist.workflow.retrain import (
    MAX_MODELS_PER_TASK,
    RetrainStage,
    RetrainUnit,
    max_models_per_task,
    original_row,
    retrain_units,
)
from genrep_dist.workflow.room import check_room
from genrep_dist.workflow.stages import STAGES, artifacts_of
from genrep_dist.workflow.status import stage_status
from genrep_dist.workflow.train import TrainStage

TASKS_PER_SLOT = 8
"""Retraining tasks per slot at least, if there are enough models: the last tasks then delay the end little."""
POLL_SECONDS = 1.0
"""How often a run looks whether other drivers have trained what it needs."""
MANY_PARTS = 1000
"""A ledger of so many parts is compacted: before a run trains models, after that, and each time that so many tasks have ended."""
COMPACTION_PAUSE = 10
"""A run spends at most one part in so many of its time on compactions while it trains."""
_MORE_MEMORY = "lower resources.workers or resources.memory_budget, or declare resources.memory for each worker,"


class Workers:
    """The executor of a run, started when it is first needed. An executor that the caller passed stays open."""

    def __init__(
        self, experiment: Experiment, *, serial: bool = False, address: str | None = None, executor: Executor | str | None = None
    ) -> None:
        self._experiment, self._address = experiment, address
        self._name = executor if isinstance(executor, str) else "serial" if serial else "ray"
        self._given = None if isinstance(executor, str) else executor
        self._executor = self._given
        self._lock = threading.Lock()

    @property
    def starting(self) -> str:
        """What :meth:`open` starts, for people; empty for what is open, or starts at once."""
        if self._executor is not None or self._name != "ray":
            return ""
        return "joining Ray" if self._address else "starting Ray"

    def open(self) -> Executor:
        if self._executor is None:
            self._executor = EXECUTORS.get(self._name)(self._experiment.resources, address=self._address)
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


class StageRunner:
    """Runs the stages of one prepared experiment."""

    def __init__(self, prepared: PreparedExperiment, progress: ProgressCounter, workers: Workers) -> None:
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = prepared.store
        self._progress = progress
        self._workers = workers
        self._checked = False
        self._ledger = self._store.ledger(self._plan.keys.training)
        self._next_compaction = 0.0
        experiment = self._plan.experiment
        self._quarantine = Quarantine(self._store, experiment.name, self._plan.keys.results, 1 + experiment.resources.retries)
        self._claims = Claims(self._store.objects, experiment.name)
        self._waits_for = ""
        """The processes that this run was told it waits for."""
        self._skipped_seeds: set[int] = set()
        """Seeds with units in quarantine: what depends on these is not computed."""
        self._is_cut = False
        """Whether units were not begun because the run's time was over."""

    def run(self, check: Callable[[int], None] | None = None) -> pl.DataFrame:
        """Run all stages up to a filled ledger; returns the table of retrain requests.

        ``check`` is called with the first seed when its original model is trained, before anything else is begun. What it raises ends the
        run. Raises UnitError for units in quarantine, after everything that does not depend on them is done; OutOfTimeError if units are
        left when the time of the run is over, after those that were running have ended.
        """
        for stage in STAGES:
            self.run_stage(stage, check if stage == TrainStage.name else None)
        plan = self._plan
        if self._skipped_seeds:
            seeds = [seed for seed in plan.experiment.seeds if seed not in self._skipped_seeds]
            if not seeds:
                self._quarantine.raise_if_skipped()
            plan = self._prepared.with_experiment(plan.experiment.with_fixed_seeds(seeds=seeds)).plan
        self._mend_ledger()
        done = finished_requests(plan, self._store)
        requests = done or retrain_requests(plan, self._store, self._prepared.train.ids.numpy(), self._prepared.test.ids.numpy())
        if not self._skipped_seeds and requests is not done:
            put_frame(self._store.objects, requests_path(plan), requests.table, table="requests", nullable=REQUEST_NULLABLE, sealed=True)
        self._retrain(requests, plan)
        self._quarantine.raise_if_skipped()
        return requests.table

    def train_originals(self) -> None:
        """Train only the original models. Raises UnitError for units in quarantine, after the others are done."""
        self.run_stage(TrainStage.name)
        self._quarantine.raise_if_skipped()

    def run_alone(self, unit: Unit) -> Outcome:
        """Run one unit outside of its stage: it is not counted, and its failure is the caller's."""
        with closing(self._open_executor().run(self._prepared.job, [unit])) as outcomes:
            return next(outcomes)

    def run_stage(self, stage: StageName, check: Callable[[int], None] | None = None) -> None:
        """Run the units of one stage whose artifacts are missing, and commit these.

        ``check``, for a stage of one unit a seed, is called with the first seed that is not in quarantine when its unit is done, before
        the next one is begun. It is not called if that unit fails.
        """
        artifacts = list(artifacts_of(self._plan, stage))
        if not artifacts:
            return
        # Where trained models are shared, no two drivers train one. Other stages take less time than claims would.
        shared = stage == TrainStage.name
        self._waits_for = ""
        while True:
            unfinished = [
                artifact
                for artifact in artifacts
                if artifact.seed not in self._skipped_seeds and not self._store.artifact(artifact.kind, artifact.key).is_intact()
            ]
            names = set(map(_claim, unfinished))
            with self._claims.take(names) if shared else nullcontext(names) as mine:
                check = self._run_claimed(stage, artifacts, unfinished, mine, check)
            others = names - mine
            if not others:
                return
            self._wait_for_others(len(others), "original models")

    def _run_claimed(
        self,
        stage: StageName,
        artifacts: Sequence[ArtifactSpec],
        unfinished: Sequence[ArtifactSpec],
        mine: set[str],
        check: Callable[[int], None] | None,
    ) -> Callable[[int], None] | None:
        """Run the units of the ``unfinished`` artifacts that are ``mine``, by the name of their claim; the ``check`` that is left to do.

        Nothing is run while another driver trains the model that has to be checked first.
        """
        missing: list[Unit] = []
        claimed: list[ArtifactSpec] = []
        num_missing = 0
        for artifact in unfinished:
            if _claim(artifact) not in mine:
                num_missing += len(artifact.units)
                continue
            if not self._store.artifact(artifact.kind, artifact.key).is_committed():  # by another driver, in the meantime
                # Declared first: parts of another grid, left by a run with another memory budget, are no parts of this one.
                artifact.declare(self._store)
                missing.extend(artifact.missing_units(self._store))
                claimed.append(artifact)
        runnable = self._quarantine.runnable(missing)
        if runnable:
            self._open_executor()  # before the stage begins, which is timed
        if missing or not self._waits_for:
            total = sum(len(artifact.units) for artifact in artifacts if artifact.seed not in self._skipped_seeds)
            self._progress.stage(stage, total, total - len(missing) - num_missing)
        skipped = set(missing).difference(runnable)
        after_first = None
        first = next((seed for seed in self._plan.experiment.seeds if seed not in {unit.seed for unit in skipped}), None)
        if check is not None and first in {artifact.seed for artifact in unfinished if _claim(artifact) not in mine}:
            return check
        if check is not None and first is not None:
            after_first = partial(check, first)
            if not runnable or runnable[0].seed != first:  # its units were run before
                after_first()
                after_first = None
        crashed = self._work(runnable, actors=STAGES.get(stage).uses_actors, after_first=after_first)
        self._skipped_seeds |= {unit.seed for unit in (*skipped, *(outcome.unit for outcome in crashed))}
        for artifact in claimed:
            if artifact.seed not in self._skipped_seeds:
                artifact.commit(self._store)
        return None

    def _wait_for_others(self, count: int, what: str) -> None:
        """Sleep for a moment, while other drivers train ``count`` models that this run needs. This run holds no claim meanwhile."""
        if self._progress.is_out_of_time:
            raise self._out_of_time()
        holders = ", ".join(sorted(set(self._claims.holders()))) or "another driver"
        if holders != self._waits_for:
            self._waits_for = holders
            self._progress.message(f"waiting: {count:,} {what} are being trained by {holders}")
        time.sleep(POLL_SECONDS)

    def _mend_ledger(self) -> None:
        """Move damaged parts away, whose models are then trained again, and merge the others if they are many."""
        for damaged in self._ledger.move_damaged_parts():
            self._progress.message(f"a part of the ledger was damaged, its models are trained again: {damaged}")
        self._compact()

    def _retrain(self, requests: RetrainRequests, plan: Plan) -> None:
        """Train the requested models that the ledger lacks."""
        self._waits_for = ""
        ledger, count = self._ledger, requests.num_retrainings
        lost = set(requests.table["original_key"]) - ledger.keys()
        if lost:
            rows = [original_row(seed, plan.keys, self._store) for seed in plan.experiment.seeds]
            ledger.write([row for row in rows if row.key in lost])
        while True:
            missing = self._missing(requests, ledger)
            with self._claims.take(retraining.key for retraining in missing) as mine:
                # Another driver may have trained some of them in the meantime.
                claimed = [retraining for retraining in self._missing(requests, ledger) if retraining.key in mine] if mine else []
                if claimed:
                    self._open_executor()
                if claimed or not self._waits_for:
                    self._progress.stage(RetrainStage.name, count, count - len(missing))
                self._train(claimed)
            others = len(missing) - len(mine)
            if not others:
                break
            self._wait_for_others(others, "models")
        self._compact()

    def _compact(self) -> None:
        """Merge the parts of the ledger if they are many: reading a part costs as much as reading hundreds of rows."""
        if len(self._ledger.parts()) < MANY_PARTS:
            return
        began = time.monotonic()
        try:
            done = self._ledger.compact_alone()
        except GenRepError as error:  # the run does not need it
            self._progress.message(f"the ledger was not compacted: {error}")
        else:
            self._progress.message(f"the ledger was compacted: {done.parts_before:,} parts became {done.parts_after:,}")
        now = time.monotonic()
        self._next_compaction = now + COMPACTION_PAUSE * (now - began)

    def _missing(self, requests: RetrainRequests, ledger: Ledger) -> list[Retraining]:
        """The requested models that the ledger lacks, without those in quarantine."""
        known = ledger.keys()
        missing = [retraining for key, retraining in requests.retrainings.items() if key not in known]
        return [retraining for retraining in missing if not self._quarantine.contains(retraining.key)]

    def _train(self, missing: Sequence[Retraining]) -> None:
        if missing:
            crashed = self._work(self._retrain_units(missing), actors=False)
            # Which model of a task crashes the process shows when each is trained in a task of its own.
            several = [outcome for outcome in crashed if outcome.unit.size > 1]
            alone = [RetrainUnit(row.seed, (row,)) for outcome in several for row in _rows(outcome.unit)]
            if alone:
                self._progress.message(f"tasks have crashed their processes in all attempts: {len(alone)} models are trained one by one")
                for outcome in several:
                    self._progress.unit_split(outcome)
                self._work(alone, actors=False)

    def _retrain_units(self, missing: Sequence[Retraining]) -> list[RetrainUnit]:
        """Tasks of one seed and one policy each, seed by seed: models of one policy share more of their steps."""
        by_policy: dict[RetrainPolicy, list[Retraining]] = {}
        for row in missing:
            by_policy.setdefault(row.policy, []).append(row)
        units: list[RetrainUnit] = []
        for policy, rows in sorted(by_policy.items()):
            units += retrain_units(rows, self._models_per_task(policy, len(missing)))
        return sorted(units, key=lambda unit: unit.seed)

    def _models_per_task(self, policy: RetrainPolicy, num_missing: int) -> int:
        """Models of one retraining task: about the declared seconds, and several tasks for every slot. Changes no result.

        Models that share their steps take a part of an original's seconds: if some were retrained before, their seconds count. Where
        these say that a task has time for less than a pack, packs are timed: few models at once may take as long as many.
        """
        removed = (pl.col("num_removed") > 0) & (pl.col("policy") == policy)
        original = pl.col("num_removed") == 0
        medians = [pl.col("seconds").filter(which).median().alias(name) for name, which in (("retrained", removed), ("original", original))]
        retrained, alone = self._store.ledger(self._plan.keys.training).scan().select(medians).collect().row(0)
        shape, declared = self._plan.shape, self._plan.experiment.resources.task_seconds
        # A mapped model costs as much alone as a whole pack does, so no task takes less than one pack.
        pack = shape.pack if shape.pack_kind == "mapped" else 1
        seconds = retrained or (alone or 1.0) / pack
        by_slots = math.ceil(num_missing / (TASKS_PER_SLOT * self._open_executor().slots))
        if shape.pack_kind == "stacked" and declared / max(seconds, 1e-6) < min(shape.pack, by_slots):
            seconds = min(seconds, seconds_in_packs(self._prepared, policy))
        by_time = int(declared / max(seconds, 1e-6))
        return max(1, min(by_time, by_slots, MAX_MODELS_PER_TASK, max_models_per_task(self._plan)) // pack) * pack

    def _open_executor(self) -> Executor:
        """The executor. Before its first unit, the plan is checked against its memory."""
        if starting := self._workers.starting:
            self._progress.step(starting)
        executor = self._workers.open()
        if not self._checked:
            check_room(self._plan, self._store, executor.slots_for, executor.memory_bytes)
            self._checked = True
        return executor

    def _work(self, units: Iterable[Unit], *, actors: bool, after_first: Callable[[], None] | None = None) -> list[Outcome]:
        """Run all units, then raise the first failure. A failure of the store is raised at once, because nothing could be written.

        Returns the outcomes of units that crashed in every attempt. Those of a single model, or of none, are put in quarantine.
        ``after_first`` is called when the first unit has succeeded, before the second one is begun.
        """
        failures: list[Outcome] = []
        crashed: list[Outcome] = []
        ended = 0
        with closing(self._outcomes(iter(units), actors, after_first)) as outcomes:
            for outcome in outcomes:
                ended += 1
                self._progress.unit_ended(outcome)
                if isinstance(outcome.unit, RetrainUnit) and ended % MANY_PARTS == 0 and time.monotonic() > self._next_compaction:
                    self._compact()
                if outcome.crashed:
                    crashed.append(outcome)
                    if outcome.unit.size == 1:
                        self._quarantine.add(outcome, self._prepared.train.ids.numpy())
                elif outcome.failure is not None:
                    if outcome.failure.kind is FailureKind.STORE:
                        raise outcome.failure.error
                    failures.append(outcome)
        for failed in failures:
            if isinstance(failed.error, CorruptError) and failed.error.damaged is not None:
                raise failed.error
        if not failures:
            if self._is_cut:
                raise self._out_of_time()
            return crashed
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

    def _outcomes(self, units: Iterator[Unit], actors: bool, after_first: Callable[[], None] | None) -> Generator[Outcome, None, None]:
        """Run the units; the executor is opened for the first one."""
        batches = [units] if after_first is None else [itertools.islice(units, 1), units]
        for batch in batches:
            head = next(batch, None)
            if head is None:
                return
            counted = self._counted(itertools.chain([head], batch))
            with closing(self._open_executor().run(self._prepared.job, counted, actors=actors)) as ended:
                for outcome in ended:
                    yield outcome
                    if after_first is not None and batch is not units and outcome.failure is None:
                        after_first()

    def _out_of_time(self) -> OutOfTimeError:
        """The error of a run whose time is over, with what is left. What is not known yet is counted at most."""
        stages = [stage for stage in stage_status(self._plan, self._store) if stage.done < stage.total]
        left = [f"{stage.name} {'' if stage.exact else 'at most '}{stage.total - stage.done:,}" for stage in stages]
        return OutOfTimeError(
            "the time of this run is over",
            got=f"{self._progress.summary()}; left: {', '.join(left) or 'the evaluation'}",
            remedy="run the same command again: it goes on where this run stopped",
        )

    def _counted(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units, each counted when the executor takes it. None is begun when the time of the run is over."""
        for unit in units:
            if self._progress.is_out_of_time:
                self._is_cut = True
                return
            self._progress.unit_started(unit)
            yield unit


def _claim(artifact: ArtifactSpec) -> str:
    return f"{artifact.kind}/{artifact.key}"


def _rows(unit: Unit) -> tuple[Retraining, ...]:
    return unit.rows if isinstance(unit, RetrainUnit) else ()
