"""Runs an experiment: prepare, skip what is done, tune and choose seeds, compute what is missing, evaluate, publish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, OutOfTimeError
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.executors.base import Executor
from genrep_dist.executors.cluster_address import check_form, declared_address
from genrep_dist.results import Run
from genrep_dist.runner.determinism import difference_text, repeat_first_original, with_fresh_retrainings
from genrep_dist.runner.display import display_for
from genrep_dist.runner.first_seed import check_first_seed
from genrep_dist.runner.heartbeat import Heartbeat
from genrep_dist.runner.progress import NoProgress, Progress, ProgressCounter
from genrep_dist.runner.publish import is_finished, publish, replacement_text, running_run
from genrep_dist.runner.quarantine import clear_quarantine
from genrep_dist.runner.small_runs import small_work_seconds
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.runner.system_metrics import system_metrics
from genrep_dist.runner.track import follow_moved_store, tracking_uri
from genrep_dist.runner.tuning import (
    best_value,
    candidates,
    check_tuning,
    equal_to_best,
    measure_precision,
    next_num_seeds,
    recorded,
    setting_text,
    with_setting,
)
from genrep_dist.store import Store
from genrep_dist.store.damaged import move_damaged
from genrep_dist.store.lease import Lease
from genrep_dist.store.paths import ORIGINALS, ExperimentPaths
from genrep_dist.store.publications import Publications
from genrep_dist.workflow.context import pick_device
from genrep_dist.workflow.data import forget_data
from genrep_dist.workflow.evaluate import evaluate
from genrep_dist.workflow.execute import worker_context
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs, with_stored_data
from genrep_dist.workflow.record import changes_text, write_record

T = TypeVar("T")


def run(
    experiment: Experiment | str | Path,
    store: str | PathLike[str] = "store",
    *,
    serial: bool | None = False,
    address: str | None = None,
    progress: Progress | bool | None = None,
    search_path: Sequence[str] = (),
    executor: Executor | str | None = None,
    retry_failed: bool = False,
    force: bool = False,
    max_seconds: float | None = None,
) -> Run:
    """Run an experiment and return its results. Only what the store lacks is computed.

    Waits while another driver works on this experiment in this store. Damaged files of the store are moved away and recomputed.
    ``retry_failed`` runs the units in quarantine again.

    The doctor checks the first seed's original model before models are retrained. DoctorError for its red findings; with ``force`` they
    are shown, and the run goes on.

    ``serial`` runs in this process without Ray; None does so if the plan has less than a minute of work, and neither ``address`` nor
    ``executor`` is given, and says so (:func:`~genrep_dist.runner.small_runs.small_work_seconds`). ``address`` attaches to a running Ray
    cluster; ``executor`` is the name of a registered executor, or an executor, which stays open.

    ``progress``: a display of your own; True shows a line that is written again and again, False nothing, and None the line in a notebook
    and at a terminal.

    After ``max_seconds`` no unit of work is begun: those that run are finished and kept, and OutOfTimeError says what is left. The same
    call goes on from there. Raises GenRepError; units that were finished before stay finished.
    """
    experiment, search_path = _loaded(experiment, search_path)
    if not serial and executor is None:
        check_form(address)
    opened = Store(store)
    opened.objects.check_access()
    tracking_uri(experiment, opened)  # refused now, not after the work
    counter = _progress_counter(display_for(progress))
    if max_seconds is not None:
        counter.end_after(max_seconds)
    counter.step("preparing")
    declared = prepare(experiment, opened, search_path)
    check_tuning(declared.plan.experiment, declared.plan.keys)
    for warning in declared.plan.warnings:
        counter.message(f"warning: {warning}")
    with _lease(opened, experiment.name, counter) as lease, counter.also_checking(lease.check):
        if is_finished(declared, lease, counter.message):
            counter.message("everything is done already: nothing was computed")
            finished = running_run(declared)
            follow_moved_store(finished)
            return finished
        for text in (changes_text(declared), replacement_text(declared)):
            if text:
                counter.message(text)
        if retry_failed and clear_quarantine(opened, experiment.name):
            counter.message("what was in quarantine is tried again")
        if serial is None:
            serial = address is None and executor is None and _is_small(declared, counter)
        if serial or (executor is None and declared_address(address)[1] is None):
            pick_device(experiment.resources.device)  # the workers are on this machine: refused now, not by each of them
        workers = Workers(experiment, serial=serial, address=address, executor=executor)

        def record(prepared: PreparedExperiment, choices: Mapping[str, Any] | None = None) -> None:
            lease.confirm()
            write_record(prepared, choices, int(lease.number))

        def compute_and_publish(heartbeat: Heartbeat) -> None:
            nonlocal declared
            record(declared.with_experiment(experiment.with_fixed_seeds()))
            publish_inputs(declared)
            declared = with_stored_data(declared)
            digest, tables = _ExperimentRunner(declared, counter, workers, record, force=force).run()
            workers.close()
            lease.confirm()
            counter.step("publishing")
            publish(declared, digest, tables, lease, heartbeat.history())

        try:
            sample = system_metrics if experiment.tracking.system_metrics else dict[str, float]
            exports = [workers.export_metrics]
            with Heartbeat(counter, opened, experiment.name, exports, is_current=lease.is_held, sample=sample) as heartbeat:
                _repeat_without_damage(opened, counter, lambda: compute_and_publish(heartbeat))
        finally:
            workers.close()
            forget_data(declared.plan.keys.data)
        return running_run(declared)


def train_originals(
    experiment: Experiment | str | Path,
    store: str = "store",
    *,
    serial: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
    search_path: Sequence[str] = (),
) -> Run:
    """Train only the models that an experiment explains, so that another tool can score exactly these; the run `{name}.originals`.

    External scores need not exist yet. Raises as :func:`run` does.
    """
    experiment, search_path = _loaded(experiment, search_path)
    methods = [name for name in experiment.methods if name not in experiment.external_methods] or ["random"]
    changes: dict[str, Any] = {"name": f"{experiment.name}{ORIGINALS}", "methods": methods, "external": {}, "baseline": None, "blocks": {}}
    opened = Store(store)
    opened.objects.check_access()
    counter = _progress_counter(progress)
    counter.step("preparing")
    prepared = prepare(experiment.with_fixed_seeds(**changes), opened, search_path)
    with _lease(opened, prepared.plan.experiment.name, counter) as lease, counter.also_checking(lease.check):
        write_record(prepared, lease=int(lease.number))
        publish_inputs(prepared)
        prepared = with_stored_data(prepared)
        workers = Workers(experiment, serial=serial, address=address)
        try:
            _repeat_without_damage(opened, counter, lambda: StageRunner(prepared, counter, workers).train_originals())
        finally:
            workers.close()
    return running_run(prepared)


class _ExperimentRunner:
    """Runs a declared experiment: tuning on seeds that are not reported, then rounds of seeds until the intervals are narrow."""

    def __init__(
        self,
        declared: PreparedExperiment,
        progress: ProgressCounter,
        workers: Workers,
        record: Callable[[PreparedExperiment, Mapping[str, Any]], None],
        *,
        force: bool,
    ) -> None:
        self._declared, self._progress, self._workers, self._record, self._force = declared, progress, workers, record, force
        self._is_checked = False
        self._choices: dict[str, Any] = {}

    def run(self) -> tuple[str, EvaluationTables]:
        """The digest of the experiment that was run in the end, and its tables."""
        experiment = self._tuned(self._repeatable(self._declared.plan.experiment))
        stop = experiment.stop
        seeds = list(experiment.seeds) if stop is None else list(range(stop.min_seeds))
        rounds: list[dict[str, Any]] = []
        if stop is not None:
            self._choices["stop"] = {**stop.model_dump(), "rounds": rounds, "reached": False}
        while True:
            current = self._declared.with_experiment(experiment.with_fixed_seeds(seeds=seeds))
            self._record(current, self._choices)
            tables = self._evaluate(current)
            if stop is None:
                return current.plan.keys.results, tables
            found = measure_precision(tables.metrics, stop, len(seeds))
            rounds.append(asdict(found))
            self._choices["stop"] = {**stop.model_dump(), "rounds": rounds, "reached": found.half_width <= stop.half_width}
            self._record(current, self._choices)
            following = next_num_seeds(found, stop)
            width = f"{stop.metric} of {found.method} is known to ± {found.half_width:.3g} after {found.seeds} seeds"
            if following is None:
                self._progress.message(width)
                return current.plan.keys.results, tables
            target = f"target ± {stop.half_width:g}: about {found.projected} seeds projected"
            self._progress.message(f"{width}, {target}; next round: {following} seeds")
            seeds = list(range(following))

    def _evaluate(self, prepared: PreparedExperiment) -> EvaluationTables:
        runner = StageRunner(prepared, self._progress, self._workers)
        # Later rounds and other values of a parameter have the same problem and code.
        check = None if self._is_checked else partial(check_first_seed, prepared, runner, self._progress, force=self._force)
        self._is_checked = True
        requests = runner.run(check)
        self._progress.step("evaluating")
        return evaluate(prepared.plan, prepared.store, requests, lambda: worker_context(prepared.job), prepared.flipped)

    def _repeatable(self, experiment: Experiment) -> Experiment:
        """The experiment, with fresh retrainings if the problem's own training function gives another model the second time."""
        if not self._declared.plan.shape.own_training:
            return experiment
        found = repeat_first_original(self._declared, self._progress, self._workers)
        if found is None:
            return experiment
        self._choices["repeat"] = found
        if found["difference"] == 0.0:
            return experiment
        self._progress.message(
            f"warning: training is not deterministic: the model of seed {found['seed']}, trained twice, differs {difference_text(found)}. "
            "retrain: same is treated as fresh, rebatch as fresh-rebatch; ask for replicates (deletion.replicates: 3, for example), whose "
            "mean is judged"
        )
        return with_fresh_retrainings(experiment)

    def _tuned(self, experiment: Experiment) -> Experiment:
        """The experiment with the values of the tuned parameters that are best on the tuning seeds."""
        tune = experiment.tune
        if tune is None:
            return experiment
        tried, settings = [], []
        for number, (setting, candidate) in enumerate(candidates(experiment, self._declared.plan.keys), start=1):
            self._progress.part = place = f"tuning, {number} of {tune.combinations}: {setting_text(setting)}"
            self._progress.message(f"{place}, on {len(candidate.seeds)} seeds that are not reported")
            try:
                tables = self._evaluate(self._declared.with_experiment(candidate))
            except OutOfTimeError as error:
                raise OutOfTimeError(error.what, where=place, got=f"{error.got}, of this value alone", remedy=error.remedy) from error
            rows = tables.metrics.filter(pl.col("metric") == tune.metric)
            means = dict(zip(rows["method"], rows["mean"], strict=True))
            settings.append(setting)
            tried.append({"value": recorded(setting), "mean": sum(means.values()) / len(means), "methods": means})
        self._progress.part = ""
        best = settings[best_value(tune, [one["mean"] for one in tried])]
        about: dict[str, Any] = {
            "parameter": ", ".join(best),
            "metric": tune.metric,
            "seeds": list(tune.seeds),
            "chosen": recorded(best),
            "tried": tried,
        }
        if tune.settings:
            about["settings"] = tune.settings
        equal = len(equal_to_best(about)) > 1
        self._progress.message(
            f"tuning: {setting_text(best)} is best in {tune.metric}" + (", the first of several equal values" if equal else "")
        )
        self._choices["tune"] = about
        return with_setting(experiment, best).model_copy(update={"stop": experiment.stop})


def _is_small(declared: PreparedExperiment, progress: ProgressCounter) -> bool:
    """Whether to run in this process; says so."""
    progress.step("estimating")
    seconds = small_work_seconds(declared)
    if seconds is not None:
        progress.message(f"about {max(1, round(seconds))} s of work: it is done in this process; --ray starts workers of Ray for it")
    return seconds is not None


def _lease(store: Store, name: str, progress: ProgressCounter) -> Lease:
    """The lease that one driver at a time holds on the experiment ``name``."""
    # A publication has the number of its lease, and the highest one counts, even if the folder of leases was deleted.
    published = Publications(store.objects, name).highest()
    return Lease(store.objects, ExperimentPaths(name).lease, progress.message, above=published)


def _repeat_without_damage(store: Store, progress: ProgressCounter, work: Callable[[], T]) -> T:
    """Call ``work`` and return its result. When it finds damage in the store, that is moved away and ``work`` is called again."""
    moved: set[DamagedArtifact | DamagedFile] = set()
    while True:
        try:
            return work()
        except CorruptError as error:
            # Damage that recurs within one run points to a faulty disk.
            if error.damaged is None or error.damaged in moved:
                raise
            moved.add(error.damaged)
            progress.message(f"{move_damaged(store.objects, error.damaged)}, and is recomputed ({error.what})")


def _progress_counter(progress: Progress | None) -> ProgressCounter:
    return progress if isinstance(progress, ProgressCounter) else ProgressCounter(progress or NoProgress())


def _loaded(experiment: Experiment | str | Path, search_path: Sequence[str]) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment, and the folders that its own files are searched in: that of the experiment file, then the current one."""
    if isinstance(experiment, Experiment):
        return experiment, tuple(search_path)
    return load_experiment(experiment), (*search_path, str(Path(experiment).resolve().parent), str(Path.cwd()))
