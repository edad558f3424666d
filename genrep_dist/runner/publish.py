"""Publishes the results, the report and the MLflow runs of a finished experiment, all at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, StoreError
from genrep_dist.evaluation.metrics.base import RESULTS_VERSION
from genrep_dist.evaluation.metrics.deletion import summary_table
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.provenance import package_version, provenance, resume_command
from genrep_dist.report.build import data_files
from genrep_dist.report.page import ReportData, html_page
from genrep_dist.results import Run
from genrep_dist.results.rendered import rendering
from genrep_dist.results.reporting import config_text, report_data, report_files
from genrep_dist.results.reporting import origin as report_origin
from genrep_dist.runner import track
from genrep_dist.runner.heartbeat import RunHistory
from genrep_dist.runner.track import tracking_record
from genrep_dist.runner.tuning import equal_to_best
from genrep_dist.store import Store
from genrep_dist.store.damage_notes import noted_damage
from genrep_dist.store.damaged import move_damaged
from genrep_dist.store.lease import Lease
from genrep_dist.store.paths import DAMAGE_NOTES, ExperimentPaths, LedgerPaths, ResultPaths, data_folder
from genrep_dist.store.publications import Publications
from genrep_dist.store.tables import put_frame
from genrep_dist.store.versions import refuse_newer
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.record import check_record_version, is_readable, plan_of_record, read_record, restore_record
from genrep_dist.workflow.stages import STAGES, artifacts_of
from genrep_dist.workflow.user_code import NamedCode

WHERE_IT_RUNS = {"tracking", "resources"}
"""Sections of an experiment that change no result."""


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


def replacement_text(declared: PreparedExperiment) -> str:
    """What to say before work begins whose results will replace others of the same name; empty if there are none."""
    experiment, objects = declared.plan.experiment, declared.store.objects
    try:
        found = Publications(objects, experiment.name).manifest()
    except CorruptError:  # moved away before
        return ""
    if found is None or found.get("declared") == declared.plan.keys.results:
        return ""
    now, earlier = experiment.resolved(), found.get("record", {}).get("experiment", {})
    fields = [name for name in now if name in earlier and now[name] != earlier[name] and name not in WHERE_IT_RUNS]
    reason = f"other settings ({', '.join(fields)})" if fields else "other code or data"
    place = ResultPaths(experiment.name).previous(found["question"]).folder
    return f"this run replaces results of {experiment.name} with {reason}: they are kept in {declared.store.uri}/{place}"


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


def publish(declared: PreparedExperiment, results_digest: str, tables: EvaluationTables, lease: Lease, history: RunHistory) -> None:
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
    source, command = provenance(), resume_command()
    # What MLflow gets does not depend on the time, so that a run which was killed in between is not published there twice.
    data = report_data(finished, tables, more_facts=choice_facts(finished), origin=report_origin(None, source))
    paths = [staged.table("summary"), *_put_tables(store, staged, tables), *_put_report(store, staged, data)]
    link = track.track(finished, tables, paths, history, experiment, found=data.verdict)
    tracking = tracking_record(finished, link)
    page = html_page(data, report_origin(history.ended, source, command, tracking))
    store.objects.put(staged.file("report.html"), page.encode())
    store.objects.put(staged.config, config_text(finished, experiment).encode())
    manifest = {
        "question": finished.plan.keys.results,
        "declared": declared.plan.keys.results,
        "experiment": experiment.name,
        "results_version": RESULTS_VERSION,
        "package": package_version(),
        "costs": finished.costs(),
        "tracking": tracking,
        "report": rendering(finished, tracking),
        "times": {"began": history.began, "ended": history.ended},
        "provenance": source,
        "command": command,
        "record": read_record(store, experiment.name),
    }
    files = [path.rpartition("/")[2] for path in [*paths, staged.config]]
    publications.keep_previous(results_digest)
    publications.publish(number, manifest, files, lease.confirm, tables=[f"{name}.parquet" for name in table_specs()])


def _values_text(value: Any) -> str:
    """The value of a tuned parameter; of several the values in the order of their names."""
    return " and ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def _settings_text(settings: Mapping[str, Any] | None) -> str:
    """The metric's settings while values were tried, in brackets; empty if they were those of the experiment."""
    return f" ({', '.join(f'{name} {value}' for name, value in settings.items())})" if settings else ""


def choice_facts(finished: Run) -> dict[str, str]:
    """What was decided while the experiment ran, label to text: a tuned parameter, the number of seeds."""
    facts = {}
    tune, stop = finished.choices.get("tune"), finished.choices.get("stop")
    if tune is not None:
        tried = ", ".join(f"{_values_text(one['value'])} ({one['mean']:.3g})" for one in tune["tried"])
        equal = " (the first of equal ones)" if len(equal_to_best(tune)) > 1 else ""
        metric = f"{tune['metric']}{_settings_text(tune.get('settings'))}"
        facts["Tuned on other seeds"] = (
            f"{tune['parameter']} = {_values_text(tune['chosen'])}, best{equal} in {metric} of "
            f"{', '.join(tune['tried'][0]['methods'])} on the seeds {', '.join(map(str, tune['seeds']))}, which are not reported; "
            f"tried: {tried}"
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


def _put_report(store: Store, results: ResultPaths, data: ReportData) -> list[str]:
    """Write table.md, table.tex, report.html and the figures; their paths."""
    files = data_files(data)
    for name, content in files.items():
        store.objects.put(results.file(name), content)
    return [results.file(name) for name in files]


def write_report(finished: Run, tables: EvaluationTables) -> list[str]:
    """Write table.md, table.tex, report.html and the figures of a published run again. Returns their paths below the store."""
    objects, written = finished.store.objects, report_files(finished, tables, more_facts=choice_facts(finished))
    place = ResultPaths(finished.name)
    for name, content in written.items():
        objects.put(place.file(name), content)
    manifest = finished.manifest()
    if manifest is not None:
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in written.items()}
        made = rendering(finished, manifest.get("tracking"))
        Publications(objects, finished.name).update({"files": {**manifest.get("files", {}), **digests}, "report": made})
    return [place.file(name) for name in written]
