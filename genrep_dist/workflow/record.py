"""The record of a run in the store: what status, reports and readers know without loading the problem."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genrep_dist.config import Experiment
from genrep_dist.config.experiment import EXPERIMENT_NAME
from genrep_dist.config.keys import Keys
from genrep_dist.errors import ConfigError, CorruptError, DamagedFile, StoreError
from genrep_dist.plan import Plan, Shape
from genrep_dist.provenance import package_version
from genrep_dist.store import Store
from genrep_dist.store.damaged import move_damaged
from genrep_dist.store.paths import EXPERIMENTS, ORIGINALS, ExperimentPaths, recorded_names
from genrep_dist.store.publications import Publications
from genrep_dist.store.records import reading_record
from genrep_dist.store.versions import refuse_newer
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.user_code import planning_needs, refused_code, remember_code

if TYPE_CHECKING:
    from genrep_dist.workflow.prepare import PreparedExperiment

RECORD_VERSION = 3
OLDEST_VERSION = 3
"""Records of this and later versions are read."""


class UnknownNamesError(StoreError):
    """The experiment of a record uses kernels, importances, metrics or other objects that are not registered here."""


def write_record(prepared: PreparedExperiment, choices: Mapping[str, Any] | None = None, lease: int | None = None) -> None:
    """Record what is being run, so that its state can be read from the store alone; ``choices``: results of tuning and stopping.

    ``lease``: the number of the lease under which it is run; None counts as the latest. Raises StoreError if a newer version has recorded
    the experiment.
    """
    record = make_record(prepared, choices)
    _put_record(prepared.store, prepared.plan.experiment.name, record, lease)
    remember_code(record)  # the user has named this code by running it


def make_record(prepared: PreparedExperiment, choices: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What :func:`write_record` writes, as plain data."""
    from genrep_dist.core.losses import get_loss

    plan, keys = prepared.plan, prepared.plan.keys
    record = {
        "schema_version": RECORD_VERSION,
        "package": package_version(),
        "experiment": {**plan.experiment.resolved(), "tracking": plan.experiment.tracking.redacted().model_dump(mode="json")},
        "question": keys.results,
        "data": keys.data,
        "problem": keys.problem,
        "numbers": keys.numbers,
        **({"products": keys.products} if keys.products else {}),
        "identities": {label: identity.to_record() for label, identity in prepared.job.identities.items()},
        "recipe": keys.recipe,
        "recipe_changes": keys.recipe_changes,
        "shape": asdict(plan.shape),
        "loss": get_loss(prepared.problem.loss).name,
        "search_path": list(prepared.job.search_path),
        "own_kernels": keys.own_kernels,
        "external": keys.external,
        "shared_points": keys.shared_points,
        "group_rows": keys.group_rows,
        "extensions": keys.extensions,
        "flipped_ids": list(prepared.flipped),
        "choices": dict(choices or {}),
    }
    if keys.extensions or planning_needs(record):
        record["addresses"] = array_addresses(plan)
    return record


def array_addresses(plan: Plan) -> dict[str, Any]:
    """The keys of trained models by seed, and of scores by method and seed, for readers that cannot make the plan.

    They follow from the plan, which needs the classes of a run's own kernels, importances and metrics.
    """
    keys, seeds = plan.keys, plan.experiment.seeds
    methods = zip(plan.experiment.methods, plan.experiment.parsed_methods, strict=True)
    return {
        "train": {str(seed): keys.train(seed) for seed in seeds},
        "attribution": {name: {str(seed): keys.attribution(seed, method) for seed in seeds} for name, method in methods},
    }


def changes_text(prepared: PreparedExperiment) -> str:
    """Which of the user's files and other parts of the code changed since the last run of this name, and what is computed again for it.

    Empty if nothing did, or if there was no such run.
    """
    name, found = prepared.plan.experiment.name, _changes_since_last_run(prepared)
    changed = list(dict.fromkeys(change for changes in found.values() for change in changes))
    if not changed:
        return ""
    names = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    affected = "all its models and scores are" if "problem" in found else f"what depends on {', '.join(found)} is"
    return f"changed since the last run of {name}: {names}; {affected} computed again, and nothing of the earlier run is deleted"


def _changes_since_last_run(prepared: PreparedExperiment) -> dict[str, list[str]]:
    """Changed places by what they define: the problem, a kernel, or another extension."""
    from genrep_dist.problems.digests import Identity

    try:
        record = read_record(prepared.store, prepared.plan.experiment.name)
        last = {label: Identity.from_record(found) for label, found in record.get("identities", {}).items()}
    except (StoreError, LookupError, TypeError, AttributeError):  # no record, or a damaged one, which is written again
        return {}
    changes = {label: now.changes(last[label]) for label, now in prepared.job.identities.items() if label in last}
    return {label: found for label, found in changes.items() if found}


def restore_record(store: Store, name: str, record: Mapping[str, Any], lease: int) -> None:
    """Write the record of a finished run again; another experiment of the same name may have replaced it."""
    _put_record(store, name, record, lease)


def read_record(store: Store, name: str) -> dict[str, Any]:
    """The record of the experiment ``name``; StoreError lists those that the store has.

    A driver that has slept through its lease may have written the file: then that of the published results, which were published under a
    later lease, counts.
    """
    path = ExperimentPaths(name).record
    try:
        if not re.fullmatch(EXPERIMENT_NAME, str(name)):  # it is no path
            raise FileNotFoundError(name)
        record: dict[str, Any] = store.objects.get_json(path)
    except FileNotFoundError:
        # Not the runs that only train the models of an export.
        known = [one for one in recorded_names(store.objects.list(EXPERIMENTS)) if not one.endswith(ORIGINALS)]
        raise StoreError(
            "the store has no such experiment",
            where=store.uri,
            expected="one of " + (", ".join(known) or "(none)"),
            got=str(name),
            remedy="check --store, or run the experiment first",
        ) from None
    publications = Publications(store.objects, name)
    with reading_record(store.objects, path):
        lease = int(record.get("lease", 0))
    if publications.highest() > lease:
        record = (publications.manifest() or {}).get("record", record)
    check_record_version(record, f"{store.uri}/{path}")
    if not is_readable(record):
        raise StoreError(
            "this record was written by another version",
            where=f"{store.uri}/{path}",
            expected=f"schema_version {OLDEST_VERSION} to {RECORD_VERSION}",
            got=str(record.get("schema_version")),
            remedy="run the experiment again with this version: what is still valid is not computed again",
        )
    return record


def is_readable(record: Mapping[str, Any]) -> bool:
    """Whether this version reads a record of that version."""
    found = record.get("schema_version")
    return isinstance(found, int) and OLDEST_VERSION <= found <= RECORD_VERSION


def check_record_version(record: Mapping[str, Any], where: str) -> None:
    """Raise StoreError for a record that a newer version of this package has written."""
    refuse_newer("the record of this experiment", record.get("schema_version"), RECORD_VERSION, where, record.get("package"))


def _put_record(store: Store, name: str, record: Mapping[str, Any], lease: int | None) -> None:
    objects, path = store.objects, ExperimentPaths(name).record
    try:
        with reading_record(objects, path):
            check_record_version(objects.get_json(path), f"{store.uri}/{path}")
    except FileNotFoundError:
        pass
    except CorruptError:
        move_damaged(objects, DamagedFile(path))
    number = Publications(objects, name).highest() if lease is None else lease
    objects.put_json(path, {**record, "lease": number})


def plan_of_record(record: Mapping[str, Any], folders: Sequence[str] | None = None) -> Plan:
    """The plan that a record describes, without loading the problem.

    A user's own metrics and classes of kernels are imported, the latter from ``folders``; StoreError if they are needed and None is given.
    """
    if folders is None and planning_needs(record):
        raise refused_code(record)
    shape = Shape.from_record(record["shape"])
    try:
        experiment = Experiment.model_validate(record["experiment"])
    except ConfigError as error:
        raise UnknownNamesError(
            "the experiment of this run cannot be read here",
            where=str(record["experiment"].get("name")),
            expected="all kernels, importances and metrics that it uses are registered",
            got=error.what,
            remedy="import or install the package that registers them",
        ) from error
    for name, own in experiment.kernels.items():
        if name not in record["own_kernels"]:  # a class of kernels, not a function
            from genrep_dist.problems.load import load_class

            load_class(own.class_, own.options, folders or (), "kernel")
    keys = Keys(
        experiment,
        record["data"],
        record["problem"],
        record["recipe"],
        record["recipe_changes"],
        shape.num_test,
        record["own_kernels"],
        {name: {int(seed): digest for seed, digest in by_seed.items()} for name, by_seed in record["external"].items()},
        None if record["shared_points"] is None else tuple(record["shared_points"]),
        record["extensions"],
        record.get("numbers", ""),
        None if record.get("group_rows") is None else tuple(tuple(rows) for rows in record["group_rows"]),
        record.get("products", ""),
    )
    return make_plan(keys, shape, refuse=False)
