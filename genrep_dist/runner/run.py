"""The walk itself: prepare, skip what is done, choose what is to be chosen, run what is missing, judge, publish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.errors import CorruptError
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.executors.base import Executor
from genrep_dist.results import Run, open_run
from genrep_dist.runner.heartbeat import Heartbeat
from genrep_dist.runner.progress import Progress, Silence, Tally
from genrep_dist.runner.publish import is_finished, publish
from genrep_dist.runner.quarantine import release
from genrep_dist.runner.stage_runner import Walk, Workers
from genrep_dist.runner.tuning import best_value, candidates, measure_precision, next_num_seeds, parameter_path, with_parameter
from genrep_dist.store import Store
from genrep_dist.store.damaged import put_aside
from genrep_dist.store.lease import Lease
from genrep_dist.workflow.evaluate import evaluate
from genrep_dist.workflow.execute import worker_context
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs
from genrep_dist.workflow.record import write_record

T = TypeVar("T")


def run(
    experiment: Experiment | str | Path,
    store: str = "store",
    *,
    serial: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
    search_path: Sequence[str] = (),
    executor: Executor | None = None,
    retry_failed: bool = False,
) -> Run:
    """Run an experiment to its end and return its results; what the store holds already is not computed again.

    Waits for another driver that is at work on this experiment in this store. What the store holds and is damaged is put aside and
    computed anew. ``retry_failed`` tries units again that are in quarantine.

    ``serial`` works in this process without Ray; ``address`` attaches to a running Ray cluster; ``executor`` is any other way to
    run units, and stays open. Raises GenRepError; units that were finished before stay finished.
    """
    experiment, search_path = _loaded(experiment, search_path)
    opened = Store(store)
    opened.objects.check_access()
    declared = prepare(experiment, opened, search_path)
    tally = _tally(progress)
    for warning in declared.plan.warnings:
        tally.message(f"warning: {warning}")
    with _lease(opened, experiment.name, tally) as lease:
        if is_finished(declared):
            tally.message("everything is done already: nothing was computed")
            return open_run(opened, experiment.name)
        if retry_failed and release(opened, experiment.name):
            tally.message("what was in quarantine is tried again")
        workers = Workers(experiment, serial=serial, address=address, executor=executor)

        def walk(heartbeat: Heartbeat) -> None:
            write_record(declared.with_experiment(experiment.with_fixed_seeds()))
            publish_inputs(declared)
            question, tables = _Course(declared, tally, workers).run()
            workers.close()
            lease.confirm()
            publish(declared, question, tables, heartbeat.course())

        try:
            with Heartbeat(tally, opened, experiment.name, [workers.show]) as heartbeat:
                _mending(opened, tally, lambda: walk(heartbeat))
        finally:
            workers.close()
        return open_run(opened, experiment.name)


def train_originals(
    experiment: Experiment | str | Path,
    store: str = "store",
    *,
    serial: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
    search_path: Sequence[str] = (),
) -> Run:
    """Train just the models that an experiment judges, so that another tool can explain exactly these; the run `{name}.originals`.

    Scores from elsewhere need not be there yet. Raises as :func:`run` does.
    """
    experiment, search_path = _loaded(experiment, search_path)
    methods = [name for name in experiment.methods if name not in experiment.external_methods] or ["random"]
    changes: dict[str, Any] = {"name": f"{experiment.name}.originals", "methods": methods, "external": {}, "baseline": None, "blocks": {}}
    opened = Store(store)
    opened.objects.check_access()
    prepared = prepare(experiment.with_fixed_seeds(**changes), opened, search_path)
    tally = _tally(progress)
    with _lease(opened, prepared.plan.experiment.name, tally):
        write_record(prepared)
        publish_inputs(prepared)
        workers = Workers(experiment, serial=serial, address=address)
        try:
            _mending(opened, tally, lambda: Walk(prepared, tally, workers).originals())
        finally:
            workers.close()
    return open_run(prepared.store, prepared.plan.experiment.name)


class _Course:
    """From the declared experiment to its results: tuning on seeds of their own, then rounds of seeds until it is known."""

    def __init__(self, declared: PreparedExperiment, progress: Tally, workers: Workers) -> None:
        self._declared, self._progress, self._workers = declared, progress, workers
        self._choices: dict[str, Any] = {}

    def run(self) -> tuple[str, EvaluationTables]:
        """The question that was answered in the end, and the answers."""
        experiment = self._tuned(self._declared.plan.experiment)
        stop = experiment.stop
        seeds = list(experiment.seeds) if stop is None else list(range(stop.min_seeds))
        rounds: list[dict[str, Any]] = []
        if stop is not None:
            self._choices["stop"] = {**stop.model_dump(), "rounds": rounds, "reached": False}
        while True:
            current = self._declared.with_experiment(experiment.with_fixed_seeds(seeds=seeds))
            write_record(current, self._choices)
            tables = self._evaluate(current)
            if stop is None:
                return current.plan.keys.question, tables
            found = measure_precision(tables.metrics, stop, len(seeds))
            rounds.append(asdict(found))
            self._choices["stop"] = {**stop.model_dump(), "rounds": rounds, "reached": found.half_width <= stop.half_width}
            write_record(current, self._choices)
            following = next_num_seeds(found, stop)
            width = f"{stop.metric} of {found.method} is known to ± {found.half_width:.3g} after {found.seeds} seeds"
            if following is None:
                self._progress.message(width)
                return current.plan.keys.question, tables
            self._progress.message(f"{width}, asked for ± {stop.half_width:g}: about {found.projected} seeds projected; next {following}")
            seeds = list(range(following))

    def _evaluate(self, prepared: PreparedExperiment) -> EvaluationTables:
        requests = Walk(prepared, self._progress, self._workers).run()
        return evaluate(prepared.plan, prepared.store, requests, lambda: worker_context(prepared.job), prepared.flipped)

    def _tuned(self, experiment: Experiment) -> Experiment:
        """The experiment with the parameter's value that is best on the tuning seeds."""
        tune = experiment.tune
        if tune is None:
            return experiment
        path = parameter_path(experiment, tune.parameter)
        tried = []
        for value, candidate in candidates(experiment, self._declared.plan.keys):
            self._progress.message(f"tuning: {'.'.join(path)} = {value}, on {len(candidate.seeds)} seeds that are not reported")
            tables = self._evaluate(self._declared.with_experiment(candidate))
            rows = tables.metrics.filter(pl.col("metric") == tune.metric)
            means = dict(zip(rows["method"], rows["mean"], strict=True))
            tried.append({"value": value, "mean": sum(means.values()) / len(means), "methods": means})
        best = tried[best_value(tune, [one["mean"] for one in tried])]["value"]
        self._progress.message(f"tuning: {'.'.join(path)} = {best} is best in {tune.metric}")
        about = {"parameter": ".".join(path), "metric": tune.metric, "seeds": list(tune.seeds), "chosen": best, "tried": tried}
        self._choices["tune"] = about
        return with_parameter(experiment, path, best).model_copy(update={"stop": experiment.stop})


def _lease(store: Store, name: str, progress: Tally) -> Lease:
    """What one driver at a time holds that works on the experiment ``name``."""
    return Lease(store.objects, f"experiments/{name}/lease", progress.message)


def _mending(store: Store, progress: Tally, work: Callable[[], T]) -> T:
    """What ``work`` comes to. What it finds damaged is put aside, and it begins anew: then that is missing, and made again."""
    mended: set[str] = set()
    while True:
        try:
            return work()
        except CorruptError as error:
            # Damaged once more within one run is no accident: the disk is to be looked at.
            if not error.damaged or error.damaged in mended:
                raise
            mended.add(error.damaged)
            progress.message(f"{put_aside(store.objects, error.damaged)}, and is made anew ({error.what})")


def _tally(progress: Progress | None) -> Tally:
    return progress if isinstance(progress, Tally) else Tally(progress or Silence())


def _loaded(experiment: Experiment | str | Path, search_path: Sequence[str]) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment, and where its own files are looked for: beside the experiment file, then where the process runs."""
    if isinstance(experiment, Experiment):
        return experiment, tuple(search_path)
    return load_experiment(experiment), (*search_path, str(Path(experiment).resolve().parent), str(Path.cwd()))
