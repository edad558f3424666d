"""From an experiment to a plan: load and check the problem, take its digests and sizes, publish its data."""

from __future__ import annotations

import math
import platform
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
from genrep_dist.core.gradients.model import check_model, num_parameters
from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel, Kernel, KernelSizes, PairwiseKernel
from genrep_dist.core.losses import get_loss, has_classes, is_linear
from genrep_dist.errors import PlanError
from genrep_dist.external import ExternalScores, load_external
from genrep_dist.plan import FLOAT_BYTES, Plan, Shape, derived_kernel, kernel_names
from genrep_dist.problems.checks import is_shipped
from genrep_dist.problems.label_flips import flip_labels
from genrep_dist.problems.load import load_datasets, load_problem, problem_identity
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import data_digest
from genrep_dist.registry import registrations
from genrep_dist.store import Store
from genrep_dist.store.feature_codec import pack
from genrep_dist.training.batches import padded_rows
from genrep_dist.training.flop_count import backward_bytes, forward_bytes, forward_flop
from genrep_dist.training.loop import predict
from genrep_dist.training.optimizers import identity_gap_reasons
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.torch_private import peak_tensor_bytes
from genrep_dist.training.trainer import choose_pack_kind, max_models_per_step, training_step_bytes
from genrep_dist.units import StageName
from genrep_dist.workflow.attributions import write_attribution
from genrep_dist.workflow.blocks import numbers_at_work
from genrep_dist.workflow.context import Job, label_loss, load_own_kernels, recipe_in_force
from genrep_dist.workflow.data import publish_data
from genrep_dist.workflow.extensions import extension_identities
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.rehearsal import rehearse
from genrep_dist.workflow.single_rows import check_batches
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.status import stage_status

INSPECTED_ROWS = 3
"""Training rows on which the kernels' ways to compute are tried."""
MEASURED_ROWS = 16
"""Training rows on which the size of stored features is measured, and the loss is tried."""


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
        job = replace(self.job, keys=keys, prediction_rows=plan.prediction_rows, gradient_rows=plan.gradient_rows)
        return replace(self, plan=plan, job=job, external=external)


def prepare(experiment: Experiment, store: Store, search_path: Sequence[str] = ()) -> PreparedExperiment:
    """Load, check and measure the problem, read scores from other tools and lay out the plan; nothing is computed and nothing written.

    Raises ProblemError (NonFiniteError with sample ids for bad data), PlanError, ConfigError, and what
    :func:`genrep_dist.external.load_external` raises for scores that do not fit.
    """
    problem = load_problem(experiment.problem.name, experiment.problem.options, tuple(search_path))
    identity = problem_identity(problem, experiment.problem.options, experiment.problem.name)
    train, test = load_datasets(problem)
    recipe = recipe_in_force(problem, experiment)
    # What the workers will have is unknown here; the driver usually has the same.
    device = experiment.resources.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    own_kernels, own_identities = load_own_kernels(experiment, search_path)
    derived = [kernel for name in kernel_names(experiment) if (kernel := derived_kernel(experiment, name)) is not None]
    kernels, budget = kernels_in_use(experiment, own_kernels), experiment.resources.memory_budget
    loss = get_loss(problem.loss)
    one_row_fault = rehearse(problem.model, loss, recipe, train, on_gpu=on_gpu)
    shape = measure(problem, train, test, recipe, kernels, derived, on_gpu=on_gpu, memory_budget_bytes=budget)
    loss_name = loss.name if is_shipped(loss) else f"{loss.name}, which is the problem's own"
    check_loss(experiment, loss_name, bool(label_loss(loss)))
    experiment.make_target().check_classes(shape.num_outputs, loss_name, has_classes(loss, train.targets, shape.num_outputs))
    train, flipped = _flip(experiment, problem, train, shape)
    extensions = extension_identities(experiment, recipe)
    keys = Keys(
        experiment,
        data_digest(train, test),
        identity.source,
        asdict(recipe),
        non_default_fields(recipe),
        len(test.ids),
        {name: found.digest for name, found in own_identities.items()},
        shared_points=_shared_points(experiment, test),
        extensions={label: found.digest for label, found in extensions.items()},
        numbers=identity.numbers,
    )
    external = _read_external(keys, train, test, search_path)
    keys = replace(keys, external=_digests(external))
    plan = make_plan(keys, shape)
    check_batches(plan, recipe, one_row_fault)
    identities = {"problem": identity, **{f"kernels.{name}": found for name, found in own_identities.items()}, **extensions}
    rows = plan.prediction_rows, plan.gradient_rows
    job = Job(store.uri, keys, tuple(search_path), registrations(), *rows, identities=identities, host=platform.node())
    return PreparedExperiment(plan, job, store, problem, recipe, train, test, flipped, external)


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
    problem: Problem,
    train: Dataset,
    test: Dataset,
    recipe: Recipe,
    kernels: Mapping[str, Kernel],
    derived: Sequence[DerivedKernel] = (),
    *,
    on_gpu: bool = False,
    memory_budget_bytes: int = 2**31,
) -> Shape:
    """The sizes of a problem and of the feature and pairwise ``kernels`` of its model, from one model and a few rows.

    Of rows whose features do not fit ``memory_budget_bytes`` fewer are measured. ``derived``: the kernels that are derived from the
    curvature of the loss. ProblemError for a kernel that is not defined for the model.
    """
    model = Randomness(0).build(problem.model)
    check_model(model)
    num_outputs = predict(model, train.inputs[:2]).shape[1]
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    item_bytes, few = max(p.element_size() for p in parameters), train.inputs[torch.arange(2) % len(train.inputs)]
    loss, rows = get_loss(problem.loss), _some_rows(train.inputs)
    # A GPU's own memory says how many models it takes.
    pack_kind = "solo" if on_gpu else choose_pack_kind(problem.model, loss, recipe, train)[0]
    step_rows = min(recipe.batch_size, len(train.inputs))
    step_rows = padded_rows(step_rows) if pack_kind != "solo" else step_rows
    tried = (train.inputs[:INSPECTED_ROWS], train.targets[:INSPECTED_ROWS])
    return Shape(
        len(train.ids),
        len(test.ids),
        num_outputs,
        num_parameters(model),
        {name: kernel_sizes(kernel, model, train.inputs, memory_budget_bytes) for name, kernel in kernels.items()},
        forward_flop=forward_flop(model, train.inputs[:2]),
        on_gpu=on_gpu,
        pack_kind=pack_kind,
        step_bytes=training_step_bytes(pack_kind, model, recipe, few, step_rows) or step_rows * backward_bytes(model, few),
        pack=max_models_per_step(pack_kind, sum(p.numel() * p.element_size() for p in parameters)),
        identity_gap_reasons=tuple(identity_gap_reasons(recipe)),
        slow_derived=tuple(note for kernel in derived for note in kernel.model_notes(model, loss, *tried)),
        is_loss_linear=bool(derived) and is_linear(loss, predict(model, train.inputs[rows]).cpu(), train.targets[rows]),
        state_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        item_bytes=item_bytes,
        forward_bytes=forward_bytes(model, few),
        backward_bytes=backward_bytes(model, few),
    )


def kernel_sizes(kernel: Kernel, model: nn.Module, inputs: Tensor, memory_budget_bytes: int = 2**31) -> KernelSizes:
    """Sizes of a feature or pairwise kernel; factored features are measured as they are stored, on average over a few rows."""
    if isinstance(kernel, PairwiseKernel):
        return KernelSizes(storable=False, pair_bytes=pair_bytes(kernel, model, inputs))
    assert isinstance(kernel, FeatureKernel)
    sizes = kernel.sizes(model, inputs[:2])
    if sizes.stored_bytes:
        return sizes
    fitting = memory_budget_bytes // 2 // (FLOAT_BYTES * numbers_at_work(sizes))
    rows = _some_rows(inputs, max(1, min(MEASURED_ROWS, fitting)))
    features = kernel.features(model, inputs[rows])
    assert isinstance(features, FactoredGradients)
    return replace(sizes, stored_bytes=-(-pack(features).num_bytes // len(rows)))


def _some_rows(inputs: Tensor, most: int = MEASURED_ROWS) -> Tensor:
    """Positions of at most ``most`` rows, spread evenly."""
    return torch.linspace(0, len(inputs) - 1, min(len(inputs), most)).long()


def pair_bytes(kernel: PairwiseKernel, model: nn.Module, inputs: Tensor) -> int:
    """Bytes that each pair of samples takes, from four pairs and from sixteen; 0 where they cannot be counted."""
    some = inputs[torch.arange(4) % len(inputs)]

    def count(rows: Tensor) -> int | None:
        return peak_tensor_bytes(lambda: kernel.pairs(model, rows, rows))

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            few, more = count(some[:2]), count(some)
    except Exception:  # whatever a user's kernel raises: its own stage names the kernel and the samples
        return 0
    return 0 if few is None or more is None else max(0, more - few) // 12


def kernels_in_use(experiment: Experiment, own_kernels: Mapping[str, Kernel]) -> dict[str, Kernel]:
    """The feature and pairwise kernels that an experiment computes, by name: its methods' own, and those that derived kernels need."""
    names = set()
    for name in kernel_names(experiment):
        derived = derived_kernel(experiment, name)
        names.add(name if derived is None else derived.base)
    return {name: own_kernels[name] if name in own_kernels else experiment.kernel(name) for name in sorted(filter(None, names))}


def check_room(plan: Plan, store: Store, slots_for: Callable[[StageName], int], memory_bytes: int) -> None:
    """Refuse what the memory budget, the disk or the ``memory_bytes`` of all workers' machines cannot hold. PlanError names both numbers.

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
        STAGES.get(stage.name).check_budget(plan)
        slots = slots_for(stage.name)
        if stage.peak_bytes * slots > memory_bytes:
            raise PlanError(
                f"{slots} workers cannot hold stage {stage.name} in their machines' memory",
                where="resources.workers, resources.memory_budget",
                expected=f"{stage.peak_bytes * slots:,} bytes",
                got=f"{memory_bytes:,} bytes",
                remedy="lower resources.workers or resources.memory_budget",
            )
