"""Publishes the results, the report and the MLflow runs of a finished experiment, all at once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrep_dist.config import Experiment
from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, StoreError
from genrep_dist.evaluation.metrics.base import RESULTS_VERSION
from genrep_dist.evaluation.metrics.deletion import summary_table
from genrep_dist.evaluation.statistics import seed_means
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.plan import derived_kernel
from genrep_dist.provenance import provenance
from genrep_dist.redaction import redact
from genrep_dist.results import Run
from genrep_dist.store import Store
from genrep_dist.store.damage_notes import noted, noted_damage
from genrep_dist.store.damaged import move_damaged
from genrep_dist.store.lease import Lease
from genrep_dist.store.paths import DAMAGE_NOTES, ExperimentPaths, LedgerPaths, ResultPaths, data_folder
from genrep_dist.store.publications import Publications
from genrep_dist.store.tables import put_frame
from genrep_dist.store.versions import package_version, refuse_newer
from genrep_dist.tracking.database import move_artifacts, require_location, sqlite_path, store_database
from genrep_dist.tracking.server import tracking_hint
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.record import check_record_version, is_readable, plan_of_record, read_record, restore_record
from genrep_dist.workflow.stages import STAGES, artifacts_of
from genrep_dist.workflow.user_code import NamedCode

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


def is_finished(declared: PreparedExperiment, lease: Lease, message: Callable[[str], object] = lambda text: None) -> bool:
    """Whether these results are in this store and their files are complete, intact and of this version.

    If so, their record is restored for readers. What is damaged is moved away, with a ``message``, and has to be published again.
    StoreError if a newer version of this package published them.
    """
    experiment, objects = declared.plan.experiment, declared.store.objects
    publications = Publications(objects, experiment.name)
    try:
        manifest = publications.manifest() or {}
        check_versions(declared.store, experiment.name, manifest)
        if (manifest.get("declared"), manifest.get("results_version")) != (declared.plan.keys.results, RESULTS_VERSION):
            return False
        faults = publications.faults(manifest)
        noted = _noted_damage(declared, manifest)
    except CorruptError as error:
        if error.damaged is None:
            raise
        message(f"{move_damaged(objects, error.damaged)}, and is published again ({error.what})")
        return False
    for path in faults:
        if objects.exists(path):
            message(f"{move_damaged(objects, DamagedFile(path))}, and is published again")
    for damaged in noted:
        message(f"{move_damaged(objects, damaged)}, and is recomputed")
    if faults or noted or not is_readable(manifest["record"]):
        return False
    restore_record(declared.store, experiment.name, manifest["record"], int(lease.number))
    return True


def running_run(declared: PreparedExperiment) -> Run:
    """The run of ``declared`` as the store has it, with the code that this process runs."""
    named = NamedCode(declared.plan.experiment, declared.job.search_path, running=True)
    return Run(declared.store, declared.plan.experiment.name, named)


def _noted_damage(declared: PreparedExperiment, manifest: Mapping[str, Any]) -> list[DamagedArtifact | DamagedFile]:
    """Damage of this experiment's files that readers have noted. Only then are its artifacts listed."""
    objects, name = declared.store.objects, declared.plan.experiment.name
    if not objects.list(DAMAGE_NOTES) or not is_readable(manifest["record"]):
        return []
    plan = plan_of_record(manifest["record"], declared.job.search_path)  # after tuning and stopping
    artifacts = {(found.kind, found.key) for stage in STAGES for found in artifacts_of(plan, stage)}
    folders = {ExperimentPaths(name).folder, ResultPaths(name).folder, data_folder(plan.keys.data), LedgerPaths(plan.keys.training).folder}
    return noted_damage(objects, folders, artifacts)


def check_versions(store: Store, name: str, manifest: Mapping[str, Any]) -> None:
    """StoreError if a newer version of this package wrote the experiment ``name`` or its results, of which ``manifest`` is the manifest."""
    where = f"{store.uri}/{ResultPaths(name).manifest}"
    refuse_newer("these results", manifest.get("results_version"), RESULTS_VERSION, where, manifest.get("package"))
    check_record_version(manifest.get("record", {}), where)


def publish(declared: PreparedExperiment, results_digest: str, tables: EvaluationTables, lease: Lease, progress: Progress = ()) -> None:
    """Publish the results of ``declared``. The experiment that was run in the end, after tuning and stopping, is in the record.

    Nothing is visible before all is written; then it is visible at once (:mod:`genrep_dist.store.publications`).

    Raises StoreError if the record is not that of ``results_digest``, because another driver has begun something else under this name, and
    if another driver has taken the lease or published meanwhile.
    """
    experiment, store = declared.plan.experiment, declared.store
    finished = running_run(declared)
    if finished.plan.keys.results != results_digest:
        raise StoreError(
            "another driver has begun another experiment under this name",
            where=f"{store.uri}/{ExperimentPaths(experiment.name).record}",
            expected=f"the experiment {results_digest[:12]}",
            got=f"the experiment {finished.plan.keys.results[:12]}",
            remedy="give one of them another name, and run this one again: nothing that is computed is lost",
        )
    publications, number = Publications(store.objects, experiment.name), int(lease.number)
    staged = publications.staged(number)
    summary = summary_table(tables.metrics, finished.plan.experiment.parsed_methods)
    intervals = [column for column in summary.columns if column.startswith("ci95_")]
    put_frame(store.objects, staged.table("summary"), summary, table="summary", nullable=intervals)
    paths = [staged.table("summary"), *_put_tables(store, staged, tables), *write_report(finished, tables, staged)]
    link = _track(finished, tables, paths, progress, experiment)
    store.objects.put(staged.config, experiment.to_yaml().encode())
    manifest = {
        "question": finished.plan.keys.results,
        "declared": declared.plan.keys.results,
        "experiment": experiment.name,
        "results_version": RESULTS_VERSION,
        "package": package_version(),
        "costs": finished.costs(),
        "tracking": tracking_record(finished, link),
        "provenance": provenance(),
        "record": read_record(store, experiment.name),
    }
    files = [path.rpartition("/")[2] for path in [*paths, staged.config]]
    publications.publish(number, manifest, files, lease.confirm, tables=[f"{name}.parquet" for name in table_specs()])


def tracking_record(finished: Run, link: TrackingLink) -> dict[str, Any]:
    """Where results are in MLflow, as their manifest says."""
    return {
        "uri": redact(link.tracking_uri),
        "experiment_id": link.experiment_id,
        "run_id": link.run_id,
        "hint": link.hint,
        "in_store": tracking_uri(finished.plan.experiment, finished.store)[1] is not None,
    }


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
    """Write the tables that have rows; their paths."""
    for name, spec in table_specs().items():
        if tables[name].height:
            put_frame(store.objects, results.table(name), tables[name], table=name, version=spec.version, nullable=spec.nullable)
            yield results.table(name)


def write_report(finished: Run, tables: EvaluationTables, results: ResultPaths | None = None) -> list[str]:
    """Write table.md, table.tex, report.html and the figures of a finished run. Returns their paths below the store.

    ``results``: where to; None replaces the published ones, and states their digests in the manifest.
    """
    from genrep_dist.report.build import report_files

    objects, written = finished.store.objects, report_files(finished, tables, more_facts=choice_facts(finished))
    place = results or ResultPaths(finished.name)
    for name, content in written.items():
        objects.put(place.file(name), content)
    manifest = finished.manifest() if results is None else None
    if manifest is not None:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
        Publications(objects, finished.name).update({"files": {**manifest.get("files", {}), **digests}})
    return [place.file(name) for name in written]


def published_report(finished: Run) -> list[str]:
    """The paths of the published report of a run, which are verified. NotCommittedError if there is none, CorruptError for damage."""
    finished.metrics()  # raises where nothing is published
    publications, manifest = Publications(finished.store.objects, finished.name), finished.manifest() or {}
    for path in publications.faults(manifest):
        error = CorruptError(
            "a published file is damaged or missing",
            where=f"{finished.store.uri}/{path}",
            remedy="run the experiment again: it is moved away and published again",
            damaged=DamagedFile(path),
        )
        raise noted(finished.store.objects, error)
    return [publications.results.file(name) for name in manifest.get("files", {})]


def _track(finished: Run, tables: EvaluationTables, files: Sequence[str], progress: Progress, declared: Experiment) -> TrackingLink:
    """Publish to MLflow at the address of ``declared``; the store's record has no passwords."""
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
        description=description(tables, experiment.baseline, experiment.make_target().noun),
    )
    uri, artifacts = tracking_uri(declared, finished.store)
    if artifacts is not None and finished.store.objects.root is not None:
        finished.store.objects.list("mlflow-artifacts")  # refuses links that lead out of the store
        _require_files_inside(sqlite_path(uri), artifacts)
    return publish_to_mlflow(publication, tracking_uri=uri, artifact_location=artifacts)


def track(finished: Run, tables: EvaluationTables, files: Sequence[str]) -> TrackingLink:
    """Publish finished results to MLflow again; ``files``: their paths below the store."""
    return _track(finished, tables, files, (), finished.plan.experiment)


def description(tables: EvaluationTables, declared: str | None, noun: str = "prediction") -> str:
    """The opening sentences of the report, as Markdown; ``noun`` names the explained number."""
    from genrep_dist.report.verdict import verdict

    found = verdict(tables, declared=declared, noun=noun)
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
        yield prefix, redact(str(value))


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
