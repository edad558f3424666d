"""The walk: plan, skip what is done, run what is missing, judge, publish."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from genrep_dist.config import Experiment, load_experiment
from genrep_dist.errors import GenRepError, UnitError
from genrep_dist.evaluation.deletion import deletion_arrow, deletion_table
from genrep_dist.evaluation.statistics import by_seed, curves, summarise
from genrep_dist.plan import Retraining, StageName, Unit
from genrep_dist.results import Run, open_run
from genrep_dist.runtime.executor import Executor
from genrep_dist.runtime.progress import Progress, Silence
from genrep_dist.runtime.serial import SerialExecutor
from genrep_dist.stages.assembly import assemblies, commit, declare, missing_units
from genrep_dist.stages.job import publish_data
from genrep_dist.stages.prepare import Prepared, check_room, prepare, write_record
from genrep_dist.stages.retrain import asked_path, removals, retrain_units
from genrep_dist.store import Store
from genrep_dist.store.tables import put_frame, put_table

if TYPE_CHECKING:
    from genrep_dist.tracking.mlflow_tracker import TrackingLink

STAGES: tuple[StageName, ...] = ("train", "gradients", "kernels", "influence", "importances", "attributions")
MAX_MODELS_PER_TASK = 256
CERTIFIED = (
    "residual",
    "duality_gap",
    "efficiency_gap",
    "efficiency_gap_test",
    "remaining_derivative",
    "iterations",
    "negative_curvature",
    "damping",
)
"""What goes to MLflow of the solvers' certificates, over seeds."""
TASKS_PER_SLOT = 8
"""Retraining tasks per slot at least, where there are that many models: the last ones to finish should not keep the rest waiting."""


def run(
    experiment: Experiment | str | Path,
    store: str = "store",
    *,
    serial: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
    search_path: Sequence[str] = (),
    executor: Executor | None = None,
) -> Run:
    """Run an experiment to its end and return its results; what the store holds already is not computed again.

    ``serial`` works in this process without Ray; ``address`` attaches to a running Ray cluster; ``executor`` is any other way to
    run units, and stays open. Raises GenRepError; units that were finished before stay finished.
    """
    if not isinstance(experiment, Experiment):
        # A user's problem is looked for beside the experiment file, then where the process runs.
        search_path = (*search_path, str(Path(experiment).resolve().parent), str(Path.cwd()))
        experiment = load_experiment(experiment)
    progress = progress or Silence()
    opened = Store(store)
    prepared = prepare(experiment, opened, search_path)
    for warning in prepared.plan.warnings:
        progress.message(f"warning: {warning}")
    publish_data(opened, prepared.job.data, prepared.train, prepared.test)
    write_record(prepared)
    if is_finished(prepared):
        progress.message("everything is done already: nothing was computed")
        return open_run(opened, experiment.name)
    walk = _Walk(prepared, progress, lambda: executor or make_executor(experiment, serial=serial, address=address))
    try:
        walk.run()
    finally:
        if executor is None:
            walk.close()
    return open_run(opened, experiment.name)


def make_executor(experiment: Experiment, *, serial: bool = False, address: str | None = None) -> Executor:
    """The executor that an experiment's resources ask for. Ray is imported only where it is used."""
    resources = experiment.resources
    if serial:
        return SerialExecutor(resources.retries)
    from genrep_dist.runtime.ray_executor import RayExecutor

    return RayExecutor(retries=resources.retries, workers=resources.workers, address=address, num_gpus=resources.num_gpus)


def results_folder(name: str) -> str:
    return f"results/{name}"


def is_finished(prepared: Prepared) -> bool:
    """Whether this very question has been answered, published and proved so in this store."""
    path = f"{results_folder(prepared.plan.experiment.name)}/manifest.json"
    objects = prepared.store.objects
    return objects.exists(path) and bool(objects.get_json(path)["question"] == prepared.plan.keys.question)


class _Walk:
    """One pass through the stages."""

    def __init__(self, prepared: Prepared, progress: Progress, make: Callable[[], Executor]) -> None:
        self._prepared = prepared
        self._plan = prepared.plan
        self._store = prepared.store
        self._progress = progress
        self._make = make
        self._executor: Executor | None = None

    def run(self) -> None:
        for stage in STAGES:
            self._run_stage(stage)
        asked = self._retrain()
        deletion = deletion_table(asked, self._store.ledger(self._plan.keys.training).scan())
        publish(self._prepared, deletion, summarise(deletion, self._plan.experiment.parsed_methods))

    def close(self) -> None:
        if self._executor is not None:
            self._executor.close()

    def _open_executor(self) -> Executor:
        """The executor, started when there is work for it and not before; the plan is checked against what it has."""
        if self._executor is None:
            self._executor = self._make()
            check_room(self._plan, self._store, self._executor.slots, self._executor.memory_bytes)
        return self._executor

    def _run_stage(self, stage: StageName) -> None:
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

    def _retrain(self) -> pl.DataFrame:
        """Fill the ledger with what the attributions ask for, and return the table of what was asked."""
        plan = self._plan
        asked, unique = removals(plan, self._store, cast("Any", self._prepared.test.ids.numpy()))
        put_frame(self._store.objects, asked_path(plan), asked)
        ledger = self._store.ledger(plan.keys.training)
        known = ledger.keys()
        missing = [retraining for key, retraining in unique.items() if key not in known]
        self._progress.stage("retrain", len(unique), len(unique) - len(missing))
        if missing:
            self._work(retrain_units(missing, self._models_per_task(missing)), actors=False)
        return asked

    def _models_per_task(self, missing: Sequence[Retraining]) -> int:
        """So many that a task takes about the declared seconds, and that every slot gets several tasks. Changes no result."""
        ledger = self._store.ledger(self._plan.keys.training).scan()
        seconds = ledger.filter(pl.col("num_removed") == 0).select(pl.col("seconds").median()).collect().item() or 1.0
        by_time = self._plan.experiment.resources.task_seconds / max(seconds, 1e-6)
        by_slots = math.ceil(len(missing) / (TASKS_PER_SLOT * self._open_executor().slots))
        return max(1, min(int(by_time), by_slots, MAX_MODELS_PER_TASK))

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


def publish(prepared: Prepared, deletion: pl.DataFrame, summary: pl.DataFrame) -> None:
    """Results, report and MLflow; the manifest, which says that all of it is there, comes last."""
    experiment, store = prepared.plan.experiment, prepared.store
    folder = results_folder(experiment.name)
    store.objects.delete(f"{folder}/manifest.json")
    put_table(store.objects, f"{folder}/deletion.parquet", deletion_arrow(deletion))
    put_frame(store.objects, f"{folder}/summary.parquet", summary)
    store.objects.put(f"{folder}/config.yaml", experiment.to_yaml().encode())
    finished = open_run(store, experiment.name)
    files = write_report(finished, summary, deletion)
    link = _track(finished, deletion, summary, [f"{folder}/{name}" for name in ("deletion.parquet", "summary.parquet")] + files)
    manifest = {
        "question": prepared.plan.keys.question,
        "experiment": experiment.name,
        "costs": finished.costs(),
        "tracking": {"uri": link.tracking_uri, "experiment_id": link.experiment_id, "run_id": link.run_id, "hint": link.hint},
    }
    store.objects.put_json(f"{folder}/manifest.json", manifest)


def write_report(finished: Run, summary: pl.DataFrame, deletion: pl.DataFrame) -> list[str]:
    """Write table.md, report.html and the curves of a judged run; the paths below the store."""
    from genrep_dist.report.build import report_files

    paths = []
    for name, content in report_files(finished, summary, deletion).items():
        paths.append(f"{results_folder(finished.name)}/{name}")
        finished.store.objects.put(paths[-1], content)
    return paths


def _track(finished: Run, deletion: pl.DataFrame, summary: pl.DataFrame, files: Sequence[str]) -> TrackingLink:
    from genrep_dist.tracking.mlflow_tracker import publish as publish_to_mlflow
    from genrep_dist.tracking.publication import Publication

    experiment = finished.plan.experiment
    publication = Publication(
        experiment=experiment.name,
        problem=experiment.problem.name,
        plan_digest=finished.plan.keys.question,
        config_yaml=experiment.to_yaml(),
        parameters=dict(_flat(experiment.question())) | {f"recipe_in_force.{k}": str(v) for k, v in finished.plan.keys.recipe.items()},
        summary=summary,
        curves=curves(deletion),
        by_seed=by_seed(deletion),
        artifacts={Path(path).name: finished.store.objects.get(path) for path in files},
        tags=_recipe_tags(finished),
        diagnostics=diagnostics(finished),
    )
    uri, artifacts = tracking_uri(experiment, finished.store)
    return publish_to_mlflow(publication, tracking_uri=uri, artifact_location=artifacts)


def diagnostics(finished: Run) -> dict[str, list[tuple[str, float, int]]]:
    """For each method whose importance or kernel was solved for: its residuals and gaps, as (name, value, seed)."""
    found: dict[str, list[tuple[str, float, int]]] = {}
    certificates = finished.certificates()
    for name in finished.plan.experiment.methods:
        method = finished.plan.experiment.method(name)
        epochs = finished.plan.keys.method_epochs(method)
        for certificate in certificates:
            solved = (method.importance, method.kernel) if method.kernel != "influence" else ("", "influence")
            if (certificate["importance"], certificate["kernel"]) == solved and certificate["epoch"] in epochs:
                numbers = [(key, certificate.get(key)) for key in CERTIFIED]
                found.setdefault(name, []).extend((key, float(value), certificate["seed"]) for key, value in numbers if value is not None)
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of plain data as dotted names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, str(value)


def _recipe_tags(finished: Run) -> dict[str, str]:
    """What limits the tracking identities, as tags that MLflow can be searched by."""
    recipe = finished.plan.keys.recipe
    plain = not recipe["momentum"] and not recipe["weight_decay"]
    return {"genrep.plain_sgd": str(plain).lower(), "genrep.version": version("genrep-dist")}


def tracking_uri(experiment: Experiment, store: Store) -> tuple[str, str | None]:
    """Where results are compared, and where MLflow shall put files: as declared, as MLFLOW_TRACKING_URI says, or in the store."""
    declared = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if declared:
        return declared, None
    root = store.objects.root or Path.cwd()
    return f"sqlite:///{root / 'mlflow.db'}", (root / "mlflow-artifacts").as_uri()
