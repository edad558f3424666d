"""From an experiment to a plan: load and check the problem, take its digests and sizes, publish its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.core.gradients.inspection import feature_sizes, inspect_model, slow_layers
from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.losses import Loss, get_loss
from genrep_dist.errors import PlanError, ProblemError, StoreError
from genrep_dist.external import ExternalScores, load_external
from genrep_dist.plan import Plan, Shape, make_plan
from genrep_dist.problems.checks import is_shipped
from genrep_dist.problems.label_flips import flip_labels
from genrep_dist.problems.load import load_datasets, load_problem, source_digest
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import data_digest
from genrep_dist.store import Store
from genrep_dist.store.feature_codec import pack
from genrep_dist.training.flop_count import forward_flop, step_bytes
from genrep_dist.training.loop import predict
from genrep_dist.training.pack import filled
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import arithmetic_of, most_models
from genrep_dist.units import StageName
from genrep_dist.workflow.attributions import write_attribution
from genrep_dist.workflow.context import Job, label_loss, load_own_kernels, own_kernel_digests, publish_data, recipe_in_force
from genrep_dist.workflow.status import stage_status

RECORD_VERSION = 2
MEASURED_ROWS = 16
"""Training rows that the size of stored features is measured on."""


@dataclass(frozen=True)
class Prepared:
    """An experiment that is ready to run.

    ``train`` holds the labels that are trained on, the ``flipped`` ones included; ``external`` are scores from elsewhere, checked, by
    method and seed.
    """

    plan: Plan
    job: Job
    store: Store
    problem: Problem
    recipe: Recipe
    train: Dataset
    test: Dataset
    flipped: tuple[int, ...] = ()
    external: Mapping[str, Mapping[int, ExternalScores]] = field(default_factory=dict)

    def of(self, experiment: Experiment) -> Prepared:
        """The same problem and data for another experiment on them: fewer seeds, other methods, another parameter."""
        external = {name: {seed: self.external[name][seed] for seed in experiment.seeds} for name in experiment.judged}
        keys = replace(self.plan.keys, experiment=experiment, external=_digests(external))
        plan = make_plan(keys, self.plan.shape)
        return replace(self, plan=plan, job=replace(self.job, keys=keys), external=external)


def prepare(experiment: Experiment, store: Store, search_path: Sequence[str] = ()) -> Prepared:
    """Load, check and measure the problem, read scores from elsewhere and lay out the plan; nothing is computed and nothing written.

    Raises ProblemError (NonFiniteError with sample ids for bad data), PlanError, ConfigError, and what
    :func:`genrep_dist.external.load_external` raises for scores that do not fit.
    """
    problem = load_problem(experiment.problem.name, experiment.problem.options, tuple(search_path))
    train, test = load_datasets(problem)
    recipe = recipe_in_force(problem, experiment)
    gradients = any(method.kernel in ("ntk", "influence") for method in experiment.parsed_methods)
    # What the workers will have is not known here; the driver usually has the like.
    device = experiment.resources.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    shape = _projected(measure(problem, train, test, recipe, experiment.last_layer, gradients=gradients, on_gpu=on_gpu), experiment)
    _check_metrics(experiment, get_loss(problem.loss))
    train, flipped = _flip(experiment, problem, train, shape)
    keys = Keys(
        experiment,
        data_digest(train, test),
        source_digest(problem, experiment.problem.options),
        asdict(recipe),
        len(test.ids),
        own_kernel_digests(experiment, load_own_kernels(experiment, search_path)),
        shared_points=_shared_points(experiment, test),
    )
    external = _read_external(keys, train, test, search_path)
    keys = replace(keys, external=_digests(external))
    job = Job(store.uri, keys, tuple(search_path))
    return Prepared(make_plan(keys, shape), job, store, problem, recipe, train, test, flipped, external)


def _flip(experiment: Experiment, problem: Problem, train: Dataset, shape: Shape) -> tuple[Dataset, tuple[int, ...]]:
    """The training data with wrong labels where the experiment asks for them, and the ids of those."""
    asked = experiment.problem.flip_labels
    if asked is None:
        return train, ()
    changed, flipped = flip_labels(train, label_loss(get_loss(problem.loss)), shape.num_outputs, asked.share, asked.seed)
    return changed, tuple(sorted(train.ids[flipped].tolist()))


def _shared_points(experiment: Experiment, test: Dataset) -> tuple[int, ...] | None:
    """Rows of the test set that the experiment names by id, ascending; PlanError for ids that are not there."""
    if isinstance(experiment.test_points, int):
        return None
    rows = {sample: row for row, sample in enumerate(test.ids.tolist())}
    unknown = [sample for sample in experiment.test_points if sample not in rows]
    if unknown:
        raise PlanError(
            "test points that the test set does not have",
            where="test_points",
            expected=f"ids of the test set, such as {test.ids[:3].tolist()}",
            got=f"{unknown[:5]}" + (" ..." if len(unknown) > 5 else ""),
        )
    return tuple(sorted(rows[sample] for sample in experiment.test_points))


def _check_metrics(experiment: Experiment, loss: Loss) -> None:
    """PlanError for a metric that needs a predicted class where there is none."""
    if experiment.brittleness is not None and not label_loss(loss):
        raise PlanError(
            "brittleness asks when the predicted class flips, and this loss has no classes",
            where="brittleness",
            expected="the loss 'logistic' or 'softmax'",
            got=f"{loss.name}, which is the problem's own" if not is_shipped(loss) else loss.name,
        )


def _read_external(keys: Keys, train: Dataset, test: Dataset, folders: Sequence[str]) -> dict[str, dict[int, ExternalScores]]:
    experiment = keys.experiment
    return {
        name: load_external(
            name,
            experiment.external[name],
            [Path(folder) for folder in (*folders, ".")],
            seeds=experiment.seeds,
            models={seed: keys.model(seed) for seed in experiment.seeds},
            train_ids=train.ids.numpy(),
            test_ids=test.ids.numpy(),
            positions={seed: keys.test_positions(seed) for seed in experiment.seeds},
        )
        for name in experiment.judged
    }


def _digests(external: Mapping[str, Mapping[int, ExternalScores]]) -> dict[str, dict[int, str]]:
    return {name: {seed: scores.digest for seed, scores in by_seed.items()} for name, by_seed in external.items()}


def publish_inputs(prepared: Prepared) -> None:
    """Put into the store what workers and readers take from there: the samples, and the attributions that came from elsewhere."""
    keys, store, ids = prepared.plan.keys, prepared.store, prepared.train.ids
    publish_data(store, keys.data, prepared.train, prepared.test)
    for name, by_seed in prepared.external.items():
        method = keys.experiment.method(name)
        for seed, scores in by_seed.items():
            artifact = store.artifact("attribution", keys.attribution(seed, method))
            if not artifact.is_committed():
                test_ids = prepared.test.ids[keys.test_positions(seed)].tolist()
                manifest = {"test_ids": test_ids, "scores": scores.digest, "verified": scores.verified}
                write_attribution(artifact, method, seed, torch.from_numpy(scores.phi), ids, manifest)


def measure(
    problem: Problem,
    train: Dataset,
    test: Dataset,
    recipe: Recipe,
    last_layer: str | None = None,
    *,
    gradients: bool = True,
    on_gpu: bool = False,
) -> Shape:
    """The sizes of a problem, from one model and a few rows, those of per-sample ``gradients`` only where they are wanted.

    ProblemError when ``last_layer`` is named and is not the last.
    """
    model = Randomness(0).build(problem.model)
    check_model(model)
    outputs = predict(model, train.inputs[:2])
    try:
        width = last_layer_features(model.eval(), train.inputs[:2], last_layer).shape[1]
    except ProblemError:
        if last_layer is not None:
            raise
        width = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A GPU's own memory says how many models it takes.
    arithmetic = "solo" if on_gpu else arithmetic_of(problem.model, get_loss(problem.loss), recipe, train)[0]
    shape = Shape(
        len(train.ids),
        len(test.ids),
        outputs.shape[1],
        sum(p.numel() for p in parameters),
        width,
        forward_flop=forward_flop(model, train.inputs[:2]),
        on_gpu=on_gpu,
        arithmetic=arithmetic,
        step_bytes=step_bytes(model, train.inputs[: filled(recipe.batch_size) if arithmetic != "solo" else recipe.batch_size]),
        pack=most_models(arithmetic, sum(p.numel() * p.element_size() for p in parameters)),
    )
    if not gradients:
        return shape
    layout = inspect_model(model, train.inputs[:2])
    sizes = feature_sizes(layout)
    return replace(
        shape,
        ntk_held=sizes.numel,
        ntk_spelled=sizes.operand_numel,
        ntk_products=sizes.multiply_adds,
        ntk_bytes=_stored_bytes(model, train.inputs),
        ntk_slow=tuple(slow_layers(layout)),
    )


def _projected(shape: Shape, experiment: Experiment) -> Shape:
    """The sizes where features are projected: a block is held before that, and what is kept of it are k numbers for each output."""
    if experiment.projection is None or not shape.ntk_held:
        return shape
    kept = shape.num_outputs * experiment.projection.dim
    return replace(shape, ntk_held=shape.ntk_held + kept, ntk_bytes=4 * kept, ntk_products=shape.num_outputs * kept)


def _stored_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that one sample's NTK features take in the store, on average over a few rows of the data, at initial parameters."""
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), MEASURED_ROWS)).long()
    return -(-pack(factored_gradients(model, inputs[rows]).to(torch.float32)).num_bytes // len(rows))


def check_room(plan: Plan, store: Store, slots_for: Callable[[StageName], int], memory_bytes: int) -> None:
    """Refuse what neither the disk nor the ``memory_bytes`` of all workers' machines can hold. PlanError names both numbers.

    ``slots_for(stage)``: workers of a stage at once.
    """
    if store.objects.root is not None:
        free = psutil.disk_usage(str(store.objects.root)).free
        needed = plan.bytes_written
        if needed > free:
            # What an earlier run has written takes no room any more.
            shares = {status.name: status.missing_share for status in stage_status(plan, store)}
            needed = math.ceil(sum(stage.bytes_written * shares[stage.name] for stage in plan.stages))
        if needed > free:
            raise PlanError(
                "the store's disk cannot hold this experiment",
                where=str(store.objects.root),
                expected=f"{needed:,} bytes free",
                got=f"{free:,} bytes",
                remedy="choose a larger --store, fewer seeds, or resources.features: stream",
            )
    for stage in plan.stages:
        slots = slots_for(stage.name)
        if stage.peak_bytes * slots > memory_bytes:
            raise PlanError(
                f"{slots} workers cannot hold stage {stage.name} in their machines' memory",
                where="resources.workers, resources.memory_budget",
                expected=f"{stage.peak_bytes * slots:,} bytes",
                got=f"{memory_bytes:,} bytes",
                remedy="lower resources.workers or resources.memory_budget",
            )


# -- the record: what `genrep status` and readers of a run know without loading the problem ---------------------------------------


def write_record(prepared: Prepared, choices: Mapping[str, Any] | None = None) -> None:
    """Record what is being run, so that its state can be read from the store alone; ``choices``: how it was come by."""
    plan, keys = prepared.plan, prepared.plan.keys
    record = {
        "schema_version": RECORD_VERSION,
        "experiment": plan.experiment.resolved(),
        "question": keys.question,
        "data": keys.data,
        "problem": keys.problem,
        "recipe": keys.recipe,
        "shape": asdict(plan.shape),
        "loss": get_loss(prepared.problem.loss).name,
        "search_path": list(prepared.job.search_path),
        "own_kernels": keys.own_kernels,
        "external": keys.external,
        "shared_points": keys.shared_points,
        "flipped_ids": list(prepared.flipped),
        "choices": dict(choices or {}),
    }
    prepared.store.objects.put_json(f"experiments/{plan.experiment.name}/record.json", record)


def restore_record(store: Store, name: str, record: Mapping[str, Any]) -> None:
    """Put back the record of a finished run, over which another experiment of the same name may have been begun."""
    store.objects.put_json(f"experiments/{name}/record.json", dict(record))


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
    shape = Shape(**record["shape"])
    keys = Keys(
        Experiment.model_validate(record["experiment"]),
        record["data"],
        record["problem"],
        record["recipe"],
        shape.num_test,
        record["own_kernels"],
        {name: {int(seed): digest for seed, digest in by_seed.items()} for name, by_seed in record["external"].items()},
        None if record["shared_points"] is None else tuple(record["shared_points"]),
    )
    return make_plan(keys, shape)
