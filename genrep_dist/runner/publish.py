"""Results, report and MLflow of a finished walk; the manifest, which says that all of it is there, comes last."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.evaluation.deletion import deletion_arrow
from genrep_dist.evaluation.results import NULLABLE, Judged
from genrep_dist.evaluation.statistics import by_seed, curves, summarise
from genrep_dist.provenance import provenance
from genrep_dist.results import Run, open_run
from genrep_dist.store import Store
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ExperimentPaths, ResultPaths
from genrep_dist.store.tables import put_frame, put_table
from genrep_dist.workflow.prepare import Prepared, read_record, restore_record

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
"""What goes to MLflow of the solvers' certificates, over seeds."""


RESULTS_VERSION = 2
"""Of the published tables of the judge. Results of another version are published anew from the ledger when the run is asked for again."""


def is_finished(declared: Prepared) -> bool:
    """Whether this very question has been answered, published and proved so in this store, by tables of this version.

    If so, its record is what readers see.
    """
    experiment, objects = declared.plan.experiment, declared.store.objects
    results = ResultPaths(experiment.name)
    try:
        manifest = objects.get_json(results.manifest) if objects.exists(results.manifest) else {}
        if (manifest.get("declared"), manifest.get("results_version")) != (declared.plan.keys.question, RESULTS_VERSION):
            return False
        if any(_digest(objects, results.file(name)) != digest for name, digest in manifest["tables"].items()):
            return False
    except (CorruptError, FileNotFoundError):
        return False  # and what is damaged or gone is published anew
    restore_record(declared.store, experiment.name, manifest["record"])
    return True


Numbers = Sequence[tuple[str, float, int, int]]
"""Of a run's course: (name, value, seconds since the beginning, milliseconds of the clock)."""


def publish(declared: Prepared, question: str, deletion: pl.DataFrame, judged: Judged, course: Numbers = ()) -> None:
    """Publish what the walk of ``declared`` has come to; the experiment that was run in the end is in the record.

    Raises StoreError when the record is not that of ``question``: another driver has begun something else under this name.
    """
    experiment, store = declared.plan.experiment, declared.store
    results = ResultPaths(experiment.name)
    finished = open_run(store, experiment.name)
    if finished.plan.keys.question != question:
        raise StoreError(
            "another driver has begun another experiment under this name",
            where=f"{store.uri}/{ExperimentPaths(experiment.name).record}",
            expected=f"the question {question[:12]}",
            got=f"the question {finished.plan.keys.question[:12]}",
            remedy="give one of them another name, and run this one again: nothing that is computed is lost",
        )
    summary = summarise(deletion, finished.plan.experiment.parsed_methods)
    store.objects.delete(results.manifest)
    put_table(store.objects, results.table("deletion"), deletion_arrow(deletion))
    intervals = [column for column in summary.columns if column.startswith("ci95_")]
    put_frame(store.objects, results.table("summary"), summary, table="summary", nullable=intervals)
    store.objects.put(results.config, experiment.to_yaml().encode())
    tables = ["deletion", "summary", *_put_judged(store, results, judged)]
    files = [*map(results.table, tables), *write_report(finished, summary, deletion, judged)]
    link = _track(finished, deletion, summary, judged, files, course)
    manifest = {
        "question": finished.plan.keys.question,
        "declared": declared.plan.keys.question,
        "experiment": experiment.name,
        "results_version": RESULTS_VERSION,
        "costs": finished.costs(),
        "tracking": {"uri": link.tracking_uri, "experiment_id": link.experiment_id, "run_id": link.run_id, "hint": link.hint},
        "provenance": provenance(),
        "record": read_record(store, experiment.name),
        "tables": {f"{name}.parquet": _digest(store.objects, results.table(name)) for name in tables},
    }
    store.objects.put_json(results.manifest, manifest)


def _digest(objects: Objects, path: str) -> str:
    return hashlib.sha256(objects.get(path)).hexdigest()


def choice_facts(finished: Run) -> dict[str, str]:
    """What was chosen while the experiment ran, label to text: a tuned parameter, the number of seeds."""
    facts = {}
    tune, stop = finished.choices.get("tune"), finished.choices.get("stop")
    if tune is not None:
        tried = ", ".join(f"{one['value']} ({one['mean']:.3g})" for one in tune["tried"])
        facts["Tuned apart"] = (
            f"{tune['parameter']} = {tune['chosen']}, best in {tune['metric']} of {', '.join(tune['tried'][0]['methods'])} on the seeds "
            f"{', '.join(map(str, tune['seeds']))}, which are not reported; tried: {tried}"
        )
    if stop is not None:
        last = stop["rounds"][-1]
        outcome = "reached" if stop["reached"] else f"not reached with all {stop['max_seeds']} seeds"
        facts["Stopping rule"] = (
            f"seeds in rounds ({', '.join(str(one['seeds']) for one in stop['rounds'])}) until {stop['metric']} of every method is known "
            f"to ± {stop['half_width']:g}: {outcome}; the widest is ± {last['half_width']:.3g} ({last['method']})"
        )
    return facts


def _put_judged(store: Store, results: ResultPaths, judged: Judged) -> Iterator[str]:
    """Write the tables that have rows, and remove those that an earlier question under this name has left."""
    for field in fields(judged):
        path, table = results.table(field.name), getattr(judged, field.name)
        if table.height:
            put_frame(store.objects, path, table, table=field.name, version=RESULTS_VERSION, nullable=NULLABLE.get(field.name, ()))
            yield field.name
        elif store.objects.exists(path):
            store.objects.delete(path)


def write_report(finished: Run, summary: pl.DataFrame, deletion: pl.DataFrame, judged: Judged) -> list[str]:
    """Write table.md, report.html and the curves of a judged run; the paths below the store."""
    from genrep_dist.report.build import report_files

    paths = []
    for name, content in report_files(finished, summary, deletion, judged, more_facts=choice_facts(finished)).items():
        paths.append(ResultPaths(finished.name).file(name))
        finished.store.objects.put(paths[-1], content)
    return paths


def _track(
    finished: Run, deletion: pl.DataFrame, summary: pl.DataFrame, judged: Judged, files: Sequence[str], course: Numbers
) -> TrackingLink:
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
        metrics=judged.metrics,
        comparisons=judged.comparisons,
        artifacts={Path(path).name: finished.store.objects.get(path) for path in files},
        tags=_recipe_tags(finished),
        diagnostics=diagnostics(finished),
        course=course,
        description=description(summary, deletion, judged, experiment.baseline),
    )
    uri, artifacts = tracking_uri(experiment, finished.store)
    return publish_to_mlflow(publication, tracking_uri=uri, artifact_location=artifacts)


def description(summary: pl.DataFrame, deletion: pl.DataFrame, judged: Judged, declared: str | None) -> str:
    """What the report opens with, in Markdown."""
    from genrep_dist.report.verdict import verdict

    found = verdict(summary, deletion, judged, declared=declared)
    lines = (found.headline, "", *(f"- {sentence}" for sentence in found.sentences))  # the first paragraph on its own
    # Names are text: no mark-up of theirs.
    return "\n".join(line.replace("*", "\\*").replace("_", "\\_").replace("[", "\\[").replace("<", "&lt;") for line in lines)


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
    """What limits the tracking identities and where the results came from, as tags that MLflow can be searched by."""
    recipe = finished.plan.keys.recipe
    plain = not recipe["momentum"] and not recipe["weight_decay"]
    return {
        "genrep.plain_sgd": str(plain).lower(),
        "genrep.version": version("genrep-dist"),
        **{f"genrep.{name}": value for name, value in provenance().items()},
    }


def tracking_uri(experiment: Experiment, store: Store) -> tuple[str, str | None]:
    """Where results are compared, and where MLflow shall put files: as declared, as MLFLOW_TRACKING_URI says, or in the store."""
    declared = experiment.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if declared:
        return declared, None
    root = store.objects.root or Path.cwd()
    return f"sqlite:///{root / 'mlflow.db'}", (root / "mlflow-artifacts").as_uri()
