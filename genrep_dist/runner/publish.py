"""Publishes the results, the report and the MLflow runs of a finished experiment. The manifest is written last: it proves completeness."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrep_dist.config import Experiment
from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.evaluation.metrics.base import RESULTS_VERSION
from genrep_dist.evaluation.metrics.deletion import summary_table
from genrep_dist.evaluation.statistics import seed_means
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.plan import derived_kernel
from genrep_dist.provenance import provenance
from genrep_dist.results import Run, open_run
from genrep_dist.store import Store
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ExperimentPaths, ResultPaths
from genrep_dist.store.tables import put_frame
from genrep_dist.tracking.database import move_artifacts, sqlite_path, sqlite_uri
from genrep_dist.tracking.server import tracking_hint
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.record import read_record, restore_record

if TYPE_CHECKING:
    from genrep_dist.tracking.mlflow_tracker import TrackingLink

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
"""The numbers of the solvers' certificates that are logged to MLflow, by seed."""

Progress = Sequence[tuple[str, float, int, int]]
"""Progress of a run: (name, value, seconds since its start, Unix milliseconds)."""


def is_finished(declared: PreparedExperiment) -> bool:
    """Whether these results are in this store and their tables are complete, intact and of this version.

    If so, its record is restored for readers.
    """
    experiment, objects = declared.plan.experiment, declared.store.objects
    results = ResultPaths(experiment.name)
    try:
        manifest = objects.get_json(results.manifest) if objects.exists(results.manifest) else {}
        if (manifest.get("declared"), manifest.get("results_version")) != (declared.plan.keys.results, RESULTS_VERSION):
            return False
        if any(_digest(objects, results.file(name)) != digest for name, digest in manifest["tables"].items()):
            return False
    except (CorruptError, FileNotFoundError):
        return False  # damaged or missing tables are published again
    restore_record(declared.store, experiment.name, manifest["record"])
    return True


def publish(declared: PreparedExperiment, results_digest: str, tables: EvaluationTables, progress: Progress = ()) -> None:
    """Publish the results of ``declared``. The experiment that was run in the end, after tuning and stopping, is in the record.

    Raises StoreError if the record is not that of ``results_digest``: another driver has begun something else under this name.
    """
    experiment, store = declared.plan.experiment, declared.store
    results = ResultPaths(experiment.name)
    finished = open_run(store, experiment.name)
    if finished.plan.keys.results != results_digest:
        raise StoreError(
            "another driver has begun another experiment under this name",
            where=f"{store.uri}/{ExperimentPaths(experiment.name).record}",
            expected=f"the experiment {results_digest[:12]}",
            got=f"the experiment {finished.plan.keys.results[:12]}",
            remedy="give one of them another name, and run this one again: nothing that is computed is lost",
        )
    summary = summary_table(tables.metrics, finished.plan.experiment.parsed_methods)
    store.objects.delete(results.manifest)
    intervals = [column for column in summary.columns if column.startswith("ci95_")]
    put_frame(store.objects, results.table("summary"), summary, table="summary", nullable=intervals)
    store.objects.put(results.config, experiment.to_yaml().encode())
    names = ["summary", *_put_tables(store, results, tables)]
    files = [*map(results.table, names), *write_report(finished, tables)]
    link = _track(finished, tables, files, progress)
    manifest = {
        "question": finished.plan.keys.results,
        "declared": declared.plan.keys.results,
        "experiment": experiment.name,
        "results_version": RESULTS_VERSION,
        "costs": finished.costs(),
        "tracking": {
            "uri": link.tracking_uri,
            "experiment_id": link.experiment_id,
            "run_id": link.run_id,
            "hint": link.hint,
            "in_store": tracking_uri(experiment, store)[1] is not None,
        },
        "provenance": provenance(),
        "record": read_record(store, experiment.name),
        "tables": {f"{name}.parquet": _digest(store.objects, results.table(name)) for name in names},
    }
    store.objects.put_json(results.manifest, manifest)


def _digest(objects: Objects, path: str) -> str:
    return hashlib.sha256(objects.get(path)).hexdigest()


def _values_text(value: Any) -> str:
    """The value of a tuned parameter; of several the values in the order of their names."""
    return " and ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def choice_facts(finished: Run) -> dict[str, str]:
    """What was decided while the experiment ran, label to text: a tuned parameter, the number of seeds."""
    facts = {}
    tune, stop = finished.choices.get("tune"), finished.choices.get("stop")
    if tune is not None:
        tried = ", ".join(f"{_values_text(one['value'])} ({one['mean']:.3g})" for one in tune["tried"])
        facts["Tuned on other seeds"] = (
            f"{tune['parameter']} = {_values_text(tune['chosen'])}, best in {tune['metric']} of {', '.join(tune['tried'][0]['methods'])} "
            f"on the seeds {', '.join(map(str, tune['seeds']))}, which are not reported; tried: {tried}"
        )
    if stop is not None:
        last = stop["rounds"][-1]
        outcome = "reached" if stop["reached"] else f"not reached with all {stop['max_seeds']} seeds"
        facts["Stopping rule"] = (
            f"seeds in rounds ({', '.join(str(one['seeds']) for one in stop['rounds'])}) until {stop['metric']} of every method is known "
            f"to ± {stop['half_width']:g}: {outcome}; the widest interval is ± {last['half_width']:.3g} ({last['method']})"
        )
    return facts


def _put_tables(store: Store, results: ResultPaths, tables: EvaluationTables) -> Iterator[str]:
    """Write the tables that have rows, and remove those of an earlier experiment under this name."""
    for name, spec in table_specs().items():
        path, table = results.table(name), tables[name]
        if table.height:
            put_frame(store.objects, path, table, table=name, version=spec.version, nullable=spec.nullable)
            yield name
        elif store.objects.exists(path):
            store.objects.delete(path)


def write_report(finished: Run, tables: EvaluationTables) -> list[str]:
    """Write table.md, table.tex, report.html and the figures of a finished run. Returns their paths below the store."""
    from genrep_dist.report.build import report_files

    paths = []
    for name, content in report_files(finished, tables, more_facts=choice_facts(finished)).items():
        paths.append(ResultPaths(finished.name).file(name))
        finished.store.objects.put(paths[-1], content)
    return paths


def _track(finished: Run, tables: EvaluationTables, files: Sequence[str], progress: Progress) -> TrackingLink:
    from genrep_dist.tracking.mlflow_tracker import publish as publish_to_mlflow
    from genrep_dist.tracking.publication import Publication

    experiment = finished.plan.experiment
    publication = Publication(
        experiment=experiment.name,
        problem=experiment.problem.name,
        plan_digest=finished.plan.keys.results,
        config_yaml=experiment.to_yaml(),
        parameters=dict(_flat(experiment.result_fields())) | {f"recipe_in_force.{k}": str(v) for k, v in finished.plan.keys.recipe.items()},
        methods=experiment.parsed_methods,
        metrics=tables.metrics,
        comparisons=tables.comparisons,
        seed_means=seed_means(tables.points, experiment.methods),
        curves={curve.logged_as: curve.frame for curve in tables.curves if curve.logged_as},
        artifacts={Path(path).name: finished.store.objects.get(path) for path in files},
        tags=_recipe_tags(finished),
        diagnostics=diagnostics(finished),
        progress=progress,
        description=description(tables, experiment.baseline),
    )
    uri, artifacts = tracking_uri(experiment, finished.store)
    return publish_to_mlflow(publication, tracking_uri=uri, artifact_location=artifacts)


def description(tables: EvaluationTables, declared: str | None) -> str:
    """The opening sentences of the report, as Markdown."""
    from genrep_dist.report.verdict import verdict

    found = verdict(tables, declared=declared)
    lines = (found.headline, "", *(f"- {sentence}" for sentence in found.sentences))  # the first paragraph by itself
    # Names are text: mark-up in them is escaped.
    return "\n".join(line.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").replace("<", "&lt;") for line in lines)


def diagnostics(finished: Run) -> dict[str, list[tuple[str, float, int]]]:
    """For each method whose importance or kernel was solved for: its residuals and gaps, as (name, value, seed)."""
    found: dict[str, list[tuple[str, float, int]]] = {}
    certificates = finished.certificates()
    experiment = finished.plan.experiment
    for name in experiment.methods:
        method = experiment.method(name)
        if not method.has_kernel:
            continue
        epochs = finished.plan.keys.method_epochs(method)
        for certificate in certificates:
            solved = (method.importance if derived_kernel(finished.plan.keys, method.kernel) is None else "", method.kernel)
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
    """Whether the tracking identities hold, and where the results were computed, as tags that MLflow can search."""
    return {
        "genrep.plain_sgd": str(not finished.plan.shape.identity_gap_reasons).lower(),
        "genrep.version": version("genrep-dist"),
        **{f"genrep.{name}": value for name, value in provenance().items()},
    }


def tracking_uri(experiment: Experiment, store: Store) -> tuple[str, str | None]:
    """MLflow's tracking URI and the URI of its artifacts: as declared, else MLFLOW_TRACKING_URI, else a database in the store."""
    declared = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if declared:
        return declared, None
    root = store.objects.root or Path.cwd()
    return sqlite_uri(root / "mlflow.db"), (root / "mlflow-artifacts").as_uri()


def follow_moved_store(finished: Run) -> None:
    """Let MLflow's database in a store that was moved or copied point to the artifacts beside it, and the manifest to this database."""
    uri, artifacts = tracking_uri(finished.plan.experiment, finished.store)
    database, manifest = sqlite_path(uri), finished.manifest()
    if artifacts is None or database is None or manifest is None or not manifest["tracking"].get("in_store") or not database.is_file():
        return
    try:
        move_artifacts(database, artifacts)
    except sqlite3.Error as error:
        raise StoreError("the tracking database cannot be used", where=str(database), got=f"{type(error).__name__}: {error}") from error
    link = manifest["tracking"]
    if link["uri"] != uri:
        moved = {**link, "uri": uri, "hint": tracking_hint(uri, link["experiment_id"], link["run_id"])}
        finished.store.objects.put_json(ResultPaths(finished.name).manifest, {**manifest, "tracking": moved})
