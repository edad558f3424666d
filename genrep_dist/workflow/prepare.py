"""From an experiment to a plan: load and check the problem, take its digests and sizes, publish its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from genrep_dist.config import Experiment
from genrep_dist.config.digests import non_default_fields
from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import check_loss
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, Kernel, KernelSizes
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import PlanError
from genrep_dist.extension import is_shipped_class, require_returned, returned
from genrep_dist.external import ExternalScores, load_external
from genrep_dist.plan import Plan, Shape, kernel_names
from genrep_dist.problems.checks import is_shipped
from genrep_dist.problems.label_flips import flip_labels
from genrep_dist.problems.load import load_datasets, load_problem, source_digest
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import data_digest
from genrep_dist.registry import registrations
from genrep_dist.store import Store
from genrep_dist.store.feature_codec import pack
from genrep_dist.training.batches import padded_rows
from genrep_dist.training.flop_count import forward_flop, step_bytes
from genrep_dist.training.loop import predict
from genrep_dist.training.optimizers import identity_gap_reasons
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.trainer import choose_pack_kind, max_models_per_step
from genrep_dist.units import StageName
from genrep_dist.workflow.attributions import write_attribution
from genrep_dist.workflow.context import Job, function_digests, label_loss, load_kernels, recipe_in_force
from genrep_dist.workflow.data import publish_data
from genrep_dist.workflow.extensions import extension_digests
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.returned import checked_features, checked_tensor
from genrep_dist.workflow.status import stage_status

MEASURED_ROWS = 16
"""Training rows that the size of stored features is measured on."""


@dataclass(frozen=True)
class PreparedExperiment:
    """An experiment that is ready to run.

    ``train`` holds the labels that are trained on, the ``flipped`` ones included; ``external`` are scores from other tools, checked, by
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

    def with_experiment(self, experiment: Experiment) -> PreparedExperiment:
        """The same problem and data for another experiment on them: fewer seeds, other methods, another parameter."""
        external = {name: {seed: self.external[name][seed] for seed in experiment.seeds} for name in experiment.external_methods}
        keys = replace(self.plan.keys, experiment=experiment, external=_digests(external))
        plan = make_plan(keys, self.plan.shape)
        return replace(self, plan=plan, job=replace(self.job, keys=keys), external=external)


def prepare(experiment: Experiment, store: Store, search_path: Sequence[str] = ()) -> PreparedExperiment:
    """Load, check and measure the problem, read scores from other tools and lay out the plan; nothing is computed and nothing written.

    Raises ProblemError (NonFiniteError with sample ids for bad data), PlanError, ConfigError, and what
    :func:`genrep_dist.external.load_external` raises for scores that do not fit.
    """
    problem = load_problem(experiment.problem.name, experiment.problem.options, tuple(search_path))
    train, test = load_datasets(problem)
    recipe = recipe_in_force(problem, experiment)
    # What the workers will have is unknown here; the driver usually has the same.
    device = experiment.resources.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    kernels = load_kernels(experiment, search_path)
    shape = measure(problem, train, test, recipe, kernels_in_use(experiment, kernels), on_gpu=on_gpu)
    loss = get_loss(problem.loss)
    check_loss(experiment, loss.name if is_shipped(loss) else f"{loss.name}, which is the problem's own", bool(label_loss(loss)))
    train, flipped = _flip(experiment, problem, train, shape)
    keys = Keys(
        experiment,
        data_digest(train, test),
        source_digest(problem, experiment.problem.options),
        asdict(recipe),
        non_default_fields(recipe),
        len(test.ids),
        function_digests(experiment, kernels),
        shared_points=_shared_points(experiment, test),
        extensions=extension_digests(experiment, recipe, kernels),
    )
    external = _read_external(keys, train, test, search_path)
    keys = replace(keys, external=_digests(external))
    job = Job(store.uri, keys, tuple(search_path), registrations())
    return PreparedExperiment(make_plan(keys, shape), job, store, problem, recipe, train, test, flipped, external)


def _flip(experiment: Experiment, problem: Problem, train: Dataset, shape: Shape) -> tuple[Dataset, tuple[int, ...]]:
    """The training data, with wrong labels if the experiment declares them, and the ids of those."""
    flips = experiment.problem.flip_labels
    if flips is None:
        return train, ()
    changed, flipped = flip_labels(train, label_loss(get_loss(problem.loss)), shape.num_outputs, flips.share, flips.seed)
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
        for name in experiment.external_methods
    }


def _digests(external: Mapping[str, Mapping[int, ExternalScores]]) -> dict[str, dict[int, str]]:
    return {name: {seed: scores.digest for seed, scores in by_seed.items()} for name, by_seed in external.items()}


def publish_inputs(prepared: PreparedExperiment) -> None:
    """Write what workers and readers take from the store: the samples, and the attributions of other tools."""
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
    problem: Problem, train: Dataset, test: Dataset, recipe: Recipe, kernels: Mapping[str, Kernel], *, on_gpu: bool = False
) -> Shape:
    """The sizes of a problem and of the feature and pairwise ``kernels`` of its model, from one model and a few rows.

    ProblemError for a kernel that is not defined for the model.
    """
    model = Randomness(0).build(problem.model)
    check_model(model)
    num_outputs = predict(model, train.inputs[:2]).shape[1]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    # A GPU's own memory says how many models it takes.
    pack_kind = "solo" if on_gpu else choose_pack_kind(problem.model, get_loss(problem.loss), recipe, train)[0]
    step_rows = padded_rows(recipe.batch_size) if pack_kind != "solo" else recipe.batch_size
    return Shape(
        len(train.ids),
        len(test.ids),
        num_outputs,
        sum(p.numel() for p in parameters),
        {name: kernel_sizes(kernel, model, train.inputs) for name, kernel in kernels.items()},
        forward_flop=forward_flop(model, train.inputs[:2]),
        on_gpu=on_gpu,
        pack_kind=pack_kind,
        step_bytes=step_bytes(model, train.inputs[:step_rows]),
        pack=max_models_per_step(pack_kind, sum(p.numel() * p.element_size() for p in parameters)),
        identity_gap_reasons=tuple(identity_gap_reasons(recipe)),
    )


def kernel_sizes(kernel: Kernel, model: nn.Module, inputs: Tensor) -> KernelSizes:
    """Sizes of a feature or pairwise kernel; factored features are measured as they are stored, on average over a few rows."""
    if not isinstance(kernel, FeatureKernel):
        return KernelSizes(storable=False)
    sizes = returned(KernelSizes, kernel, "sizes", kernel.sizes(model, inputs[:2]))
    if not is_shipped_class(type(kernel)):
        rehearse(kernel, sizes, model, inputs[:2])
    if sizes.stored_bytes:
        return sizes
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), MEASURED_ROWS)).long()
    features = checked_features(kernel.features(model, inputs[rows]), len(rows), kernel, "sample rows")
    require_returned(isinstance(features, FactoredGradients), kernel, "sizes", "stored_bytes above 0 for dense features", sizes)
    assert isinstance(features, FactoredGradients)
    return replace(sizes, stored_bytes=-(-pack(features).num_bytes // len(rows)))


def rehearse(kernel: FeatureKernel, sizes: KernelSizes, model: nn.Module, inputs: Tensor) -> None:
    """Compute a kernel of another package on a few rows, so that what does not fit its ``sizes`` is found before any work begins."""
    count, where = len(inputs), f"the first {len(inputs)} training samples"
    outputs = torch.zeros(count, dtype=torch.int64)
    num_outputs = predict(model, inputs).shape[1]
    rows = checked_features(kernel.features(model, inputs), count, kernel, where)
    points = checked_features(kernel.features(model, inputs, outputs), count, kernel, where, of_points=True)
    if isinstance(rows, Tensor):
        form = f"{sizes.held} numbers a sample and {sizes.gram_rows} rows of the gram, as sizes() says"
        fits = (rows[0].numel(), rows[0].numel() // rows.shape[-1]) == (sizes.held, sizes.gram_rows)
        require_returned(fits, kernel, "features", form, f"{tuple(rows.shape)}", where)
    prepared = points.as_operand() if isinstance(points, FactoredGradients) else points
    checked_tensor(kernel.block(rows, prepared, outputs, num_outputs), (count, num_outputs, count), kernel, "block", where)
    checked_tensor(kernel.diagonal(rows, outputs, num_outputs), (count, num_outputs), kernel, "diagonal", where)


def kernels_in_use(experiment: Experiment, kernels: Mapping[str, Kernel]) -> dict[str, Kernel]:
    """Those feature and pairwise ``kernels`` that an experiment computes, by name: of its methods, and bases of derived ones."""
    used = {name: kernels[name] for name in kernel_names(experiment)}
    names = {kernel.base if isinstance(kernel, DerivedKernel) else name for name, kernel in used.items()}
    return {name: kernels[name] for name in sorted(filter(None, names))}


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
