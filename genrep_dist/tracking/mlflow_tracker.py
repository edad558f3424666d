"""Publishes a finished experiment to MLflow. The only file that imports it.

Experiment ``genrep/<problem>``; one parent run an experiment, identified by the tag ``genrep.plan_digest``; one child run a method.

Crash-safe: the last write of a run is the tag ``genrep.complete``. A child without it is deleted and written again; a complete one with
the same numbers is kept, so publishing twice adds nothing. Only the driver calls this; workers never log.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from genrep_dist.errors import GenRepError, StoreError
from genrep_dist.redaction import redact
from genrep_dist.tracking.charts import SHARED_VIEW, shared_view
from genrep_dist.tracking.database import create_database, move_artifacts, sqlite_path
from genrep_dist.tracking.publication import (
    DatasetRecord,
    MethodRun,
    Publication,
    acceptable,
    file_digests,
    json_digest,
    method_runs,
    run_files,
)
from genrep_dist.tracking.server import check_server, tracking_hint

# Read when MLflow is imported or used: no usage statistics are sent, and nothing is printed into the progress display. A user's own
# values are kept.
for _setting, _value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
):
    os.environ.setdefault(_setting, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from sqlalchemy.exc import SQLAlchemyError  # noqa: E402

PLAN_DIGEST = "genrep.plan_digest"
COMPLETE = "genrep.complete"
CONTENT = "genrep.content_digest"
METHOD = "genrep.method"
ARCHIVED = "genrep.archived"
"""The tag of runs that a later run of the same name, of other settings or data, has replaced: "true", else "false"."""
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""
_PARENT = "mlflow.parentRunId"

_BATCH_METRICS = 1000
_BATCH_OTHERS = 100  # of parameters; both are MLflow's limits for one request


@dataclass(frozen=True)
class TrackingLink:
    """Where an experiment was published. ``runs``: method to its child run; ``hint``: how to open it, one line."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    runs: Mapping[str, str]
    hint: str


def publish(publication: Publication, *, tracking_uri: str, artifact_location: str | None = None) -> TrackingLink:
    """Write ``publication`` to the MLflow at ``tracking_uri`` (SQLite or a server), or complete an earlier, interrupted publication.

    A missing SQLite database is created first. ``artifact_location`` (a URI) is for the files of a new MLflow experiment; None leaves
    the choice to the server. An existing experiment keeps its location, except in an SQLite database whose artifacts were moved with it.

    Raises NonFiniteError for NaN or Inf before anything is written, StoreError if MLflow cannot be reached or refuses.
    """
    children = method_runs(publication)
    with _quiet(), _as_store_error(tracking_uri):
        check_server(tracking_uri)
        _close_connections(tracking_uri)
        create_database(tracking_uri, lambda uri: MlflowClient(tracking_uri=uri).search_experiments(max_results=1))
        if artifact_location is not None and (database := sqlite_path(tracking_uri)) is not None:
            move_artifacts(database, artifact_location)
        client = MlflowClient(tracking_uri=tracking_uri)
        experiment_id = _experiment(client, f"genrep/{publication.problem}", artifact_location)
        parent = _parent(client, experiment_id, publication)
        runs = _children(client, experiment_id, parent.info.run_id, children, publication)
        view = shared_view(children, f"tags.`{_PARENT}` = '{parent.info.run_id}'")
        if client.get_experiment(experiment_id).tags.get(name := f"{SHARED_VIEW}{parent.info.run_id}") != view:
            client.set_experiment_tag(experiment_id, name, view)
        _finish_parent(client, parent, publication, children, _note(publication, experiment_id, parent.info.run_id, runs, children))
        _archive_others(client, experiment_id, parent, runs.values())
    return TrackingLink(
        tracking_uri, experiment_id, parent.info.run_id, runs, tracking_hint(tracking_uri, experiment_id, parent.info.run_id)
    )


def _close_connections(tracking_uri: str) -> None:
    """Let MLflow open the database again, which may have been deleted and made again since this process used it.

    It keeps connections, one set for each address, and would read and write the deleted file.
    """
    if sqlite_path(tracking_uri) is None:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engines = getattr(SqlAlchemyStore, "_engine_map", {})  # private; MLflow has no call for this
    if tracking_uri in engines:
        engines[tracking_uri].dispose()


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location, tags={"mlflow.experimentKind": "custom_model_development"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another driver has created it meanwhile
    if found is None or found.lifecycle_stage != "active":
        raise StoreError(
            "the MLflow experiment was deleted",
            where=name,
            expected="an active experiment, or none of this name",
            remedy="restore it in MLflow, or remove it for good with 'mlflow gc'",
        )
    return found.experiment_id


def _parent(client: MlflowClient, experiment_id: str, publication: Publication) -> Run:
    """The run of this plan, existing or new. Of several, which concurrent drivers may have created, the oldest."""
    found = _search(client, experiment_id, PLAN_DIGEST, publication.plan_digest)
    if found:
        return found[0]
    tags = {**publication.tags, PLAN_DIGEST: publication.plan_digest, "genrep.problem": publication.problem}
    return client.create_run(experiment_id, publication.began, tags, publication.experiment)


def _children(
    client: MlflowClient, experiment_id: str, parent_id: str, children: Sequence[MethodRun], publication: Publication
) -> dict[str, str]:
    """Method to run id. Incomplete, outdated and duplicate runs are deleted."""
    found = _search(client, experiment_id, _PARENT, parent_id)
    runs: dict[str, str] = {}
    for child in children:
        mine = [run for run in found if run.data.tags.get(METHOD) == child.method]
        kept = [run.info.run_id for run in mine if _is_complete(run, child.digest)][:1]
        for run in mine:
            if run.info.run_id not in kept:
                client.delete_run(run.info.run_id)
        runs[child.method] = kept[0] if kept else _write_child(client, experiment_id, parent_id, child, publication)
    return runs


def _write_child(client: MlflowClient, experiment_id: str, parent_id: str, child: MethodRun, publication: Publication) -> str:
    tags = {**publication.tags, **child.tags, _PARENT: parent_id, ARCHIVED: "false"}
    run_id: str = client.create_run(experiment_id, publication.began, tags, child.method).info.run_id
    now = publication.ended or time.time_ns() // 1_000_000
    _log_parameters(client, run_id, child.parameters)
    _log_metrics(client, run_id, [Metric(m.name, m.value, now, m.step) for m in child.measurements], [RunTag(CONTENT, child.digest)])
    _log_files(client, run_id, child.files)
    _log_datasets(client, run_id, child.datasets)
    _complete(client, run_id, publication.ended)
    return run_id


def _finish_parent(client: MlflowClient, parent: Run, publication: Publication, children: Sequence[MethodRun], note: str) -> None:
    """Write parameters, tags, description and files of the experiment. It is marked complete after all children are."""
    run_id, files, parameters = parent.info.run_id, run_files(publication), acceptable(publication.parameters)
    tags = {**publication.tags, "genrep.problem": publication.problem, NOTE: note, ARCHIVED: "false"}
    digest = json_digest([[child.digest for child in children], parameters, tags, file_digests(files), dict(publication.numbers)])
    if _is_complete(parent, digest):
        return
    if COMPLETE in parent.data.tags:
        client.delete_tag(run_id, COMPLETE)
    # MLflow allows a parameter to be written only once: parameters of an earlier publication stay.
    _log_parameters(client, run_id, {name: value for name, value in parameters.items() if name not in parent.data.params})
    now = publication.ended or time.time_ns() // 1_000_000
    _log_metrics(client, run_id, [Metric(name, value, now, 0) for name, value in publication.numbers.items()])
    _log_metrics(client, run_id, [Metric(name, value, when, step) for name, value, step, when in publication.progress])
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in {**tags, CONTENT: digest}.items()])
    _log_files(client, run_id, files)
    _log_datasets(client, run_id, publication.datasets)
    _complete(client, run_id, publication.ended)


def _archive_others(client: MlflowClient, experiment_id: str, current: Run, runs: Iterable[str]) -> None:
    """Mark runs with the name of ``current`` and another digest as archived, and ``current`` as not, with the runs of their methods."""
    if current.data.tags.get(ARCHIVED) == "true":
        for run_id in (*runs, current.info.run_id):
            client.set_tag(run_id, ARCHIVED, "false")
    for other in _search(client, experiment_id, ARCHIVED, "false"):
        is_other = other.data.tags.get(PLAN_DIGEST, current.data.tags[PLAN_DIGEST]) != current.data.tags[PLAN_DIGEST]
        if is_other and other.info.run_name == current.info.run_name:
            for run in (*_search(client, experiment_id, _PARENT, other.info.run_id), other):
                client.set_tag(run.info.run_id, ARCHIVED, "true")


def _log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, str]) -> None:
    new = [Param(name, value) for name, value in parameters.items()]
    for start in range(0, len(new), _BATCH_OTHERS):
        client.log_batch(run_id, params=new[start : start + _BATCH_OTHERS])


def _log_files(client: MlflowClient, run_id: str, files: Mapping[str, bytes]) -> None:
    if not files:
        return
    with tempfile.TemporaryDirectory(prefix="genrep-artifacts-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_artifacts(run_id, folder)


def _log_datasets(client: MlflowClient, run_id: str, datasets: Sequence[DatasetRecord]) -> None:
    if datasets:
        inputs = [
            DatasetInput(
                Dataset(one.name, one.digest, "local", json.dumps({"uri": one.source}), profile=json.dumps({"num_rows": one.rows})),
                [InputTag("mlflow.data.context", one.context)],
            )
            for one in datasets
        ]
        client.log_inputs(run_id, inputs)


def _log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric], tags: Sequence[RunTag] = ()) -> None:
    for start in range(0, len(metrics), _BATCH_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH_METRICS], tags=tags)


def _complete(client: MlflowClient, run_id: str, ended: int | None) -> None:
    client.set_terminated(run_id, end_time=ended)
    client.set_tag(run_id, COMPLETE, "true")  # the last write: everything before it is complete


def _is_complete(run: Run, digest: str) -> bool:
    return run.data.tags.get(COMPLETE) == "true" and run.data.tags.get(CONTENT) == digest


def _search(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Run]:
    """Active runs of an experiment with this tag, oldest first."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", ViewType.ACTIVE_ONLY, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _note(publication: Publication, experiment_id: str, parent_id: str, runs: Mapping[str, str], children: Sequence[MethodRun]) -> str:
    """The description of the experiment's run: what was found, and links to the charts and the table of all methods."""
    names = list(dict.fromkeys(m.name for child in children for m in child.measurements if m.name.startswith("del_")))
    ids, experiments = (quote(json.dumps(found, separators=(",", ":"))) for found in (list(runs.values()), [experiment_id]))
    # A filter in the address would replace the view's own. MLflow's pages begin with those for traces of language models.
    page = f"#/experiments/{experiment_id}/runs?viewStateShareKey={parent_id}&workflowType=machine_learning"
    links = [
        f"[charts of all methods]({page}&compareRunsMode=CHART)",
        f"[table]({page})",
        f"[parallel coordinates](#/compare-runs?runs={ids}&experiments={experiments})",
        *(
            f"[{name}](#/metric?runs={ids}&metric={quote(json.dumps(name))}&experiments={experiments}"
            f"&plot_metric_keys={quote(json.dumps([name]))}&x_axis=step)"
            for name in names
        ),
    ]
    # MLflow folds a long description: the first paragraph and the links come first.
    first, _, more = publication.description.partition("\n\n")
    compare = f"Compare: {', '.join(links)}; `report.html` among the artifacts has the rest."
    return "\n\n".join([text for text in (first, compare, more) if text])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide MLflow's messages about its own tables; its warnings and errors are still shown."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # MLflow's own models use an interface that newer versions of SQLAlchemy deprecate.
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy is deprecated")
        for logger in loggers:
            logger.setLevel(max(logger.level, logging.WARNING))
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _as_store_error(tracking_uri: str) -> Iterator[None]:
    """Errors of MLflow as StoreError. A damaged SQLite database ends in errors of all kinds: of alembic, of enumerations, of decoding."""
    database = sqlite_path(tracking_uri)
    try:
        yield
    except GenRepError:
        raise
    except Exception as error:
        if database is None and not isinstance(error, (MlflowException, SQLAlchemyError, OSError)):
            raise
        remedy = "the results are in the store: correct this and run again, which publishes only what is missing"
        if database is not None:
            remedy += ". If the database is damaged, `genrep tracking rebuild` recreates it from the published results"
        raise StoreError(
            "MLflow refused the publication",
            where=redact(tracking_uri),
            got=f"{type(error).__name__}: {error}".strip().splitlines()[0],
            remedy=remedy,
        ) from error
