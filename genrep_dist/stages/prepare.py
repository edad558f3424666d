"""From an experiment to a plan: load and check the problem, take its digests and sizes, publish its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from genrep_dist.config import Experiment
from genrep_dist.errors import PlanError, ProblemError, StoreError
from genrep_dist.keys import Keys
from genrep_dist.plan import Plan, Shape, make_plan
from genrep_dist.problems.load import load_datasets, load_problem, source_digest
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import data_digest
from genrep_dist.representers.features import check_model, last_layer_features
from genrep_dist.representers.losses import get_loss
from genrep_dist.stages.job import Job, load_own_kernels, own_kernel_digests, recipe_in_force
from genrep_dist.store import Store
from genrep_dist.training.loop import predict
from genrep_dist.training.randomness import Randomness

RECORD_VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to run."""

    plan: Plan
    job: Job
    store: Store
    problem: Problem
    recipe: Recipe
    train: Dataset
    test: Dataset


def prepare(experiment: Experiment, store: Store, search_path: Sequence[str] = ()) -> Prepared:
    """Load, check and measure the problem and lay out the plan; nothing is computed and nothing written.

    Raises ProblemError (NonFiniteError with sample ids for bad data), PlanError, ConfigError.
    """
    problem = load_problem(experiment.problem.name, experiment.problem.options, tuple(search_path))
    train, test = load_datasets(problem)
    recipe = recipe_in_force(problem, experiment)
    shape = measure(problem, train, test, experiment.last_layer)
    digest = data_digest(train, test)
    source = source_digest(problem, experiment.problem.options)
    kernels = own_kernel_digests(experiment, load_own_kernels(experiment, search_path))
    job = Job(store.uri, experiment, digest, source, asdict(recipe), len(test.ids), tuple(search_path), kernels)
    plan = make_plan(job.keys, shape)
    return Prepared(plan, job, store, problem, recipe, train, test)


def measure(problem: Problem, train: Dataset, test: Dataset, last_layer: str | None = None) -> Shape:
    """The sizes of a problem, from one model and a few rows. ProblemError when ``last_layer`` is named and is not the last."""
    model = Randomness(0).build(problem.model)
    check_model(model)
    outputs = predict(model, train.inputs[:2])
    try:
        width = last_layer_features(model.eval(), train.inputs[:2], last_layer).shape[1]
    except ProblemError:
        if last_layer is not None:
            raise
        width = 0
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Shape(len(train.ids), len(test.ids), outputs.shape[1], parameters, width)


def check_room(plan: Plan, store: Store, slots: int, memory_bytes: int) -> None:
    """Refuse what neither the disk nor the ``memory_bytes`` of all workers' machines can hold. PlanError names both numbers."""
    if store.objects.root is not None:
        free = psutil.disk_usage(str(store.objects.root)).free
        if plan.bytes_written > free:
            raise PlanError(
                "the store's disk cannot hold this experiment",
                where=str(store.objects.root),
                expected=f"{plan.bytes_written:,} bytes free",
                got=f"{free:,} bytes",
                remedy="choose a larger --store, fewer seeds, or resources.features: stream",
            )
    for stage in plan.stages:
        if stage.peak_bytes * slots > memory_bytes:
            raise PlanError(
                f"{slots} workers cannot hold stage {stage.name} in their machines' memory",
                where="resources.workers, resources.memory_budget",
                expected=f"{stage.peak_bytes * slots:,} bytes",
                got=f"{memory_bytes:,} bytes",
                remedy="lower resources.workers or resources.memory_budget",
            )


# -- the record: what `genrep status` and readers of a run know without loading the problem ---------------------------------------


def write_record(prepared: Prepared) -> None:
    """Record what was asked, so that the state of a run can be read from the store alone."""
    plan, job = prepared.plan, prepared.job
    record = {
        "schema_version": RECORD_VERSION,
        "experiment": plan.experiment.resolved(),
        "question": plan.keys.question,
        "data": job.data,
        "problem": job.problem,
        "recipe": job.recipe,
        "shape": asdict(plan.shape),
        "loss": get_loss(prepared.problem.loss).name,
        "search_path": list(job.search_path),
        "own_kernels": job.own_kernels,
    }
    prepared.store.objects.put_json(f"experiments/{plan.experiment.name}/record.json", record)


def read_record(store: Store, name: str) -> dict[str, Any]:
    """The record of the experiment ``name``; StoreError lists those that the store knows."""
    try:
        record: dict[str, Any] = store.objects.get_json(f"experiments/{name}/record.json")
    except FileNotFoundError:
        known = sorted({path.split("/")[1] for path in store.objects.list("experiments")})
        raise StoreError(
            "this store knows no such experiment",
            where=store.uri,
            expected="one of " + (", ".join(known) or "(none)"),
            got=name,
            remedy="check --store, or run the experiment first",
        ) from None
    if record.get("schema_version") != RECORD_VERSION:
        raise StoreError(
            "this record was written by another version",
            where=f"{store.uri}/experiments/{name}/record.json",
            expected=f"schema_version {RECORD_VERSION}",
            got=str(record.get("schema_version")),
            remedy="run the experiment again with this version: what is still valid is not computed again",
        )
    return record


def plan_of_record(record: dict[str, Any]) -> Plan:
    """The plan that a record describes, without loading the problem."""
    experiment = Experiment.model_validate(record["experiment"])
    shape = Shape(**record["shape"])
    keys = Keys(experiment, record["data"], record["problem"], record["recipe"], shape.num_test, record["own_kernels"])
    return make_plan(keys, shape)
