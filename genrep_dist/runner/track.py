"""Publishes a finished experiment to MLflow: what its runs contain, and the address of the tracking server or database."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.errors import StoreError
from genrep_dist.evaluation.statistics import seed_means
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.plan import derived_kernel
from genrep_dist.provenance import UNKNOWN, in_job, program_name, provenance, resume_command, user_name
from genrep_dist.redaction import redact
from genrep_dist.report.tables import RANDOM
from genrep_dist.report.verdict import Verdict, best_method
from genrep_dist.results import Run
from genrep_dist.runner.heartbeat import RunHistory
from genrep_dist.store import Store
from genrep_dist.store.paths import data_folder
from genrep_dist.store.publications import Publications
from genrep_dist.tracking.database import move_artifacts, require_location, sqlite_path, store_database
from genrep_dist.tracking.publication import DatasetRecord
from genrep_dist.tracking.server import tracking_hint

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


MAIN_SETTINGS = ("optimizer", "learning_rate", "epochs", "batch_size")
"""Settings of the recipe that are logged for every method, besides those that differ from their defaults."""


def track(
    finished: Run,
    tables: EvaluationTables,
    files: Sequence[str],
    history: RunHistory,
    declared: Experiment | None = None,
    *,
    found: Verdict | None = None,
) -> TrackingLink:
    """Publish finished results to MLflow; ``files``: their paths below the store.

    ``declared``: the experiment with the address of MLflow; the store's record has no passwords. ``found``: the report's verdict, if it is
    known; making it takes longer than all else here.
    """
    from genrep_dist.results.method_files import method_files
    from genrep_dist.results.reporting import config_text, run_verdict
    from genrep_dist.tracking.mlflow_tracker import publish as publish_to_mlflow
    from genrep_dist.tracking.publication import Publication

    experiment = finished.plan.experiment
    recipe = {f"recipe_in_force.{name}": value for name, value in _recipe(finished).items()}
    publication = Publication(
        experiment=experiment.name,
        problem=experiment.problem.name,
        plan_digest=finished.plan.keys.results,
        config_yaml=config_text(finished, experiment),
        parameters=dict(_flat(experiment.result_fields())) | recipe,
        methods=experiment.parsed_methods,
        metrics=tables.metrics,
        comparisons=tables.comparisons,
        seed_means=seed_means(tables.points, experiment.methods),
        curves={curve.logged_as: curve.frame for curve in tables.curves if curve.logged_as},
        artifacts={Path(path).name: finished.store.objects.get(path) for path in files},
        tags=_tags(finished, tables),
        diagnostics=diagnostics(finished),
        description=description(found or run_verdict(finished, tables)),
        numbers=_numbers(finished, tables),
        costs=tables.costs,
        method_parameters=_method_parameters(finished),
        method_files=method_files(finished, tables),
        datasets=_datasets(finished),
        progress=_chosen(history, declared or experiment),
        began=history.began,
        ended=history.ended,
    )
    uri, artifacts = tracking_uri(declared or experiment, finished.store)
    if artifacts is not None and finished.store.objects.root is not None:
        finished.store.objects.list("mlflow-artifacts")  # refuses links that lead out of the store
        _require_files_inside(sqlite_path(uri), artifacts)
    return publish_to_mlflow(publication, tracking_uri=uri, artifact_location=artifacts)


def _numbers(finished: Run, tables: EvaluationTables) -> dict[str, float]:
    """The metrics of the experiment's own run: the best method's and random removal's numbers, accuracy, and what the run cost."""
    found: dict[str, float] = {}
    best = best_method(tables)
    for name in tables.measured:
        rows = tables.metrics.filter(pl.col("metric") == name)
        for label, method in (("best", best), ("random", RANDOM)):
            means = rows.filter(pl.col("method") == method)["mean"]
            found |= {f"{name}_{label}": float(mean) for mean in means}
    training, costs = finished.training(), finished.costs()
    averages = {column: training[column].drop_nans().mean() for column in ("train_loss", "test_accuracy")}
    found |= {name: float(mean) for name, mean in averages.items() if isinstance(mean, float)}
    spent = costs["seconds"] + float(tables.costs["explanation_seconds"].sum())
    found |= {"retrainings": costs["unique"], "training_seconds": costs["seconds"], "worker_seconds": spent}
    return found


def _method_parameters(finished: Run) -> dict[str, str]:
    """What distinguishes this experiment from others of its problem, for the runs of all methods."""
    plan, experiment = finished.plan, finished.plan.experiment
    points = experiment.test_points
    return {f"recipe.{name}": value for name, value in _recipe(finished).items()} | {
        "experiment": experiment.name,
        "problem": experiment.problem.name,
        "target": experiment.make_target().noun,
        "retrain": experiment.deletion.retrain,
        "seeds": str(len(experiment.seeds)),
        "test_points": str(points if isinstance(points, int) else len(points)),
        "training_samples": str(plan.shape.num_train),
    }


def _recipe(finished: Run) -> dict[str, str]:
    """The main settings of the recipe in force, and those that differ from their defaults."""
    keys = finished.plan.keys
    shown = {*MAIN_SETTINGS, *keys.recipe_changes}
    return {name: str(value) for name, value in keys.recipe.items() if name in shown and value is not None}


def _datasets(finished: Run) -> list[DatasetRecord]:
    plan, name = finished.plan, finished.plan.experiment.problem.name
    sizes = {"train": plan.shape.num_train, "test": plan.shape.num_test}
    source = f"{finished.store.uri}/{data_folder(plan.keys.data)}"
    return [DatasetRecord(f"{name} {context}", plan.keys.data[:32], context, rows, redact(source)) for context, rows in sizes.items()]


def _chosen(history: RunHistory, declared: Experiment) -> list[tuple[str, float, int, int]]:
    """The measurements over time that the experiment asks for."""
    return [
        one
        for one in history.measurements
        if (declared.tracking.progress if one[0].startswith("system/progress.") else declared.tracking.system_metrics)
    ]


def description(found: Verdict) -> str:
    """The opening sentences of the report, as Markdown."""
    lines = (found.headline, "", *(f"- {sentence}" for sentence in found.sentences))  # the first paragraph by itself
    # Names are text: mark-up in them is escaped.
    return "\n".join(line.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").replace("<", "&lt;") for line in lines)


def diagnostics(finished: Run) -> dict[str, list[tuple[str, float, int]]]:
    """For each method whose importance or kernel was solved for: its residuals and gaps, as (name, value, seed)."""
    found: dict[str, list[tuple[str, float, int]]] = {}
    certificates = finished.certificate_records()
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
    """Leaves of plain data as dotted names; None is left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix and value is not None:
        yield prefix, redact(str(value))


def _tags(finished: Run, tables: EvaluationTables) -> dict[str, str]:
    """The best method, whether the tracking identities hold, and where the results were computed, as tags that MLflow can search."""
    origin = provenance()
    found = {
        "genrep.best_method": best_method(tables),
        "genrep.plain_sgd": str(not finished.plan.shape.identity_gap_reasons).lower(),
        "genrep.version": version("genrep-dist"),
        # MLflow's pages show the last part of a path: of a command with paths it would be one of its options.
        "mlflow.source.name": program_name(),
        "genrep.command": resume_command(),
        "mlflow.source.type": "JOB" if in_job() else "LOCAL",
        "mlflow.user": user_name(),
    }
    if origin["git_commit"] != UNKNOWN:
        found["mlflow.source.git.commit"] = origin["git_commit"].removesuffix("-dirty")
    return found | {f"genrep.{name}": value for name, value in origin.items() if value not in ("none", UNKNOWN)}


def tracking_uri(experiment: Experiment, store: Store) -> tuple[str, str | None]:
    """MLflow's tracking URI and the URI of its artifacts: as declared, else MLFLOW_TRACKING_URI, else a database in the store."""
    declared = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if declared:
        return declared, None
    root = store.objects.root or Path.cwd()
    store.objects.require_inside("mlflow.db", "mlflow-artifacts")
    uri, artifacts = store_database(root)
    return uri, artifacts.as_uri()


def _require_files_inside(database: Path | None, artifacts: str) -> None:
    """Raise StoreError if the database of a store sends files out of it."""
    if database is None or not database.is_file():
        return
    try:
        move_artifacts(database, artifacts)
        require_location(database, artifacts)
    except sqlite3.Error as error:
        raise _unusable(database, error) from error


def _unusable(database: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(
        "the tracking database cannot be used",
        where=str(database),
        got=f"{type(error).__name__}: {error}",
        remedy=f"run `genrep tracking rebuild --store {database.parent}`: it recreates the database from the published results",
    )


def follow_moved_store(finished: Run) -> None:
    """Let MLflow's database in a store that was moved or copied point to the artifacts beside it, and the manifest to this database."""
    uri, artifacts = tracking_uri(finished.plan.experiment, finished.store)
    database, manifest = sqlite_path(uri), finished.manifest()
    if artifacts is None or database is None or manifest is None or not manifest["tracking"].get("in_store") or not database.is_file():
        return
    try:
        move_artifacts(database, artifacts)
    except sqlite3.Error as error:
        raise _unusable(database, error) from error
    link = manifest["tracking"]
    if link["uri"] != uri:
        moved = {**link, "uri": uri, "hint": tracking_hint(uri, link["experiment_id"], link["run_id"])}
        Publications(finished.store.objects, finished.name).update({"tracking": moved})


def tracking_record(finished: Run, link: TrackingLink) -> dict[str, Any]:
    """Where results are in MLflow, as their manifest says."""
    return {
        "uri": redact(link.tracking_uri),
        "experiment_id": link.experiment_id,
        "run_id": link.run_id,
        "hint": link.hint,
        "in_store": tracking_uri(finished.plan.experiment, finished.store)[1] is not None,
    }
