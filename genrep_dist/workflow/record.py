"""The record of a run in the store: what status, reports and readers know without loading the problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ConfigError, StoreError
from genrep_dist.plan import Plan, Shape
from genrep_dist.problems.digests import Identity
from genrep_dist.problems.load import load_class
from genrep_dist.store import Store
from genrep_dist.store.paths import EXPERIMENTS, ExperimentPaths, experiment_name
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.prepare import PreparedExperiment

RECORD_VERSION = 3


def write_record(prepared: PreparedExperiment, choices: Mapping[str, Any] | None = None) -> None:
    """Record what is being run, so that its state can be read from the store alone; ``choices``: results of tuning and stopping."""
    plan, keys = prepared.plan, prepared.plan.keys
    record = {
        "schema_version": RECORD_VERSION,
        "experiment": plan.experiment.resolved(),
        "question": keys.results,
        "data": keys.data,
        "problem": keys.problem,
        "numbers": keys.numbers,
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
    prepared.store.objects.put_json(ExperimentPaths(plan.experiment.name).record, record)


def changes_since_last_run(prepared: PreparedExperiment) -> list[str]:
    """Files and other parts of the user's code that are not those of the last run of this name; none if there was no such run."""
    try:
        record = read_record(prepared.store, prepared.plan.experiment.name)
    except StoreError:
        return []
    last = {label: Identity.from_record(found) for label, found in record.get("identities", {}).items()}
    now = prepared.job.identities
    return list(dict.fromkeys(change for label in now if label in last for change in now[label].changes(last[label])))


def restore_record(store: Store, name: str, record: Mapping[str, Any]) -> None:
    """Write the record of a finished run again; another experiment of the same name may have replaced it."""
    store.objects.put_json(ExperimentPaths(name).record, dict(record))


def read_record(store: Store, name: str) -> dict[str, Any]:
    """The record of the experiment ``name``; StoreError lists those that the store has."""
    try:
        record: dict[str, Any] = store.objects.get_json(ExperimentPaths(name).record)
    except FileNotFoundError:
        known = sorted({experiment_name(path) for path in store.objects.list(EXPERIMENTS)})
        raise StoreError(
            "the store has no such experiment",
            where=store.uri,
            expected="one of " + (", ".join(known) or "(none)"),
            got=name,
            remedy="check --store, or run the experiment first",
        ) from None
    if record.get("schema_version") != RECORD_VERSION:
        raise StoreError(
            "this record was written by another version",
            where=f"{store.uri}/{ExperimentPaths(name).record}",
            expected=f"schema_version {RECORD_VERSION}",
            got=str(record.get("schema_version")),
            remedy="run the experiment again with this version: what is still valid is not computed again",
        )
    return record


def plan_of_record(record: dict[str, Any]) -> Plan:
    """The plan that a record describes, without loading the problem."""
    shape = Shape.from_record(record["shape"])
    try:
        experiment = Experiment.model_validate(record["experiment"])
    except ConfigError as error:
        raise StoreError(
            "the experiment of this run cannot be read here",
            where=str(record["experiment"].get("name")),
            expected="all kernels, importances and metrics that it uses are registered",
            got=error.what,
            remedy="import or install the package that registers them",
        ) from error
    for name, own in experiment.kernels.items():
        if name not in record["own_kernels"]:  # a class of kernels, not a function
            load_class(own.class_, own.options, record["search_path"], "kernel")
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
    )
    return make_plan(keys, shape, refuse=False)
