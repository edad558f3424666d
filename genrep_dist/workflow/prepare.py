"""From an experiment to a plan: load and check the problem, take its digests and sizes, publish its data."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import check_loss
from genrep_dist.core.kernels.base import DerivedKernel, Kernel
from genrep_dist.core.losses import get_loss, has_classes
from genrep_dist.core.strongest import StrongestScores
from genrep_dist.errors import PlanError
from genrep_dist.external import ExternalScores, load_external
from genrep_dist.plan import Plan, Shape
from genrep_dist.problems.checks import has_module, is_shipped
from genrep_dist.problems.digests import recipe_values
from genrep_dist.problems.functions import training_function
from genrep_dist.problems.label_flips import flip_labels
from genrep_dist.problems.load import load_datasets, load_problem, problem_identity
from genrep_dist.problems.protocol import Dataset, Problem, Recipe
from genrep_dist.problems.tables import data_digest
from genrep_dist.registry import registrations
from genrep_dist.store import Store
from genrep_dist.training.packs.compatibility import training_products
from genrep_dist.workflow.attributions import write_attribution, write_strongest
from genrep_dist.workflow.context import Job, declared_epochs, function_identities, label_loss, load_kernels, worker_keys
from genrep_dist.workflow.data import SHARED_BYTES, publish_data, read_data
from genrep_dist.workflow.ensembles import check_ensembles
from genrep_dist.workflow.extensions import extension_identities
from genrep_dist.workflow.function_rehearsal import Provided, check_provided, rehearse_function
from genrep_dist.workflow.measure import kernels_in_use, measure, prediction_shape
from genrep_dist.workflow.planning import make_plan
from genrep_dist.workflow.recipes import check_rebatching, check_recipe, recipe_in_force
from genrep_dist.workflow.rehearsal import rehearse
from genrep_dist.workflow.relabelling import check_relabelling
from genrep_dist.workflow.scores import check_scorers
from genrep_dist.workflow.single_rows import check_batches
from genrep_dist.workflow.targets import check_target, group_means, target_of


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
        job = replace(self.job, keys=worker_keys(keys), prediction_rows=plan.prediction_rows, gradient_rows=plan.gradient_rows)
        return replace(self, plan=plan, job=job, external=external)


def prepare(experiment: Experiment, store: Store, search_path: Sequence[str] = ()) -> PreparedExperiment:
    """Load, check and measure the problem, read scores from other tools and lay out the plan; nothing is computed and nothing written.

    Raises ProblemError (NonFiniteError with sample ids for bad data), PlanError, ConfigError, and what
    :func:`genrep_dist.external.load_external` raises for scores that do not fit.
    """
    problem = load_problem(experiment.problem.name, experiment.problem.options, tuple(search_path))
    identity = problem_identity(problem, experiment.problem.options, experiment.problem.name)
    train, test = load_datasets(problem)
    recipe = recipe_in_force(problem, experiment, search_path)
    check_recipe(recipe, train)
    # What the workers will have is unknown here; the driver usually has the same.
    device = experiment.resources.device
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    kernels, budget = load_kernels(experiment, search_path), experiment.resources.memory_budget
    in_use, derived = kernels_in_use(experiment, kernels), [kernel for kernel in kernels.values() if isinstance(kernel, DerivedKernel)]
    loss = get_loss(problem.loss)
    own_training, one_row_fault = training_function(problem) is not None, ""
    if own_training:
        shape = _measure_own_training(experiment, problem, train, test, recipe, in_use, derived, on_gpu=on_gpu)
    else:
        one_row_fault = rehearse(problem.model, loss, recipe, train, on_gpu=on_gpu)
        shape = measure(problem, train, test, recipe, in_use, derived, on_gpu=on_gpu, memory_budget_bytes=budget)
    loss_name = loss.name if is_shipped(loss) else f"{loss.name}, which is the problem's own"
    check_loss(experiment, loss_name, bool(label_loss(loss)))
    target = target_of(experiment, problem)
    target.check_classes(shape.num_outputs, loss_name, has_classes(loss, train.targets, shape.num_outputs))
    check_target(experiment, target, problem, test, shape.num_outputs)
    train, flipped = _flip(experiment, problem, train, shape)
    functions, extensions = function_identities(experiment, kernels), extension_identities(experiment, recipe, kernels)
    keys = Keys(
        experiment,
        data_digest(train, test),
        identity.source,
        *recipe_values(recipe),
        len(test.ids),
        {name: found.digest for name, found in functions.items()},
        shared_points=_shared_points(experiment, test),
        group_rows=_group_rows(experiment, test),
        extensions={label: found.digest for label, found in extensions.items()},
        numbers=identity.numbers,
        products="" if own_training else training_products(problem.model, recipe),
    )
    external = _read_external(keys, train, test, search_path)
    keys = replace(keys, external=_digests(external))
    plan = make_plan(keys, shape)
    check_scorers(plan, loss, train)
    check_ensembles(experiment, problem, train.inputs[:2])
    check_rebatching(plan, recipe)
    check_relabelling(experiment, train, shape.num_outputs)
    check_batches(plan, recipe, one_row_fault)
    identities = {"problem": identity, **{f"kernels.{name}": found for name, found in functions.items()}, **extensions}
    rows = plan.prediction_rows, plan.gradient_rows
    job = Job(store.uri, worker_keys(keys), tuple(search_path), registrations(), *rows, identities=identities, host=platform.node())
    return PreparedExperiment(plan, job, store, problem, recipe, train, test, flipped, external)


def _measure_own_training(
    experiment: Experiment,
    problem: Problem,
    train: Dataset,
    test: Dataset,
    recipe: Recipe,
    kernels: Mapping[str, Kernel],
    derived: Sequence[DerivedKernel],
    *,
    on_gpu: bool,
) -> Shape:
    """Rehearse the problem's own training function, then measure. ProblemError if it does not provide what the methods need."""
    epochs, is_module = declared_epochs(problem, experiment, recipe), has_module(problem)
    # Which epochs the methods need depends on the experiment and the recipe alone.
    keys = Keys(experiment, "", "", recipe.record(), {}, len(test.ids))
    check = partial(check_provided, keys, has_epochs=epochs is not None, has_module=is_module)
    if not is_module:
        check(Provided())
    loss, resources = get_loss(problem.loss), experiment.resources
    provided = rehearse_function(problem, loss, recipe, train, check, epochs=epochs, on_gpu=on_gpu, unit_timeout=resources.unit_timeout)
    if not is_module:
        return prediction_shape(train, test, provided.num_outputs, on_gpu=on_gpu)
    budget = resources.memory_budget
    return measure(problem, train, test, recipe, kernels, derived, on_gpu=on_gpu, own_training=True, memory_budget_bytes=budget)


def _flip(experiment: Experiment, problem: Problem, train: Dataset, shape: Shape) -> tuple[Dataset, tuple[int, ...]]:
    """The training data, with wrong labels if the experiment declares them, and the ids of those."""
    flips = experiment.problem.flip_labels
    if flips is None:
        return train, ()
    changed, flipped = flip_labels(train, label_loss(get_loss(problem.loss)), shape.num_outputs, flips.share, flips.seed)
    return changed, tuple(sorted(train.ids[flipped].tolist()))


def _shared_points(experiment: Experiment, test: Dataset) -> tuple[int, ...] | None:
    """Rows of the test set that the experiment names by id, ascending; PlanError for ids that are not there."""
    if experiment.test_ids is None:
        return None
    rows = {sample: row for row, sample in enumerate(test.ids.tolist())}
    unknown = [sample for sample in experiment.test_ids if sample not in rows]
    if unknown:
        raise PlanError(
            "test points that the test set does not have",
            where="test_points",
            expected=f"ids of the test set, such as {test.ids[:3].tolist()}",
            got=f"{unknown[:5]}" + (" ..." if len(unknown) > 5 else ""),
        )
    return tuple(sorted(rows[sample] for sample in experiment.test_ids))


def _group_rows(experiment: Experiment, test: Dataset) -> tuple[tuple[int, ...], ...] | None:
    """Rows of the test set of the declared groups, ascending in each; all ids are there."""
    if experiment.test_groups is None:
        return None
    rows = {sample: row for row, sample in enumerate(test.ids.tolist())}
    return tuple(tuple(sorted(rows[sample] for sample in group)) for group in experiment.test_groups)


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
                test_ids = prepared.test.ids[keys.explained_rows(seed)].tolist()
                phi = group_means(torch.from_numpy(scores.phi), keys.test_groups(seed))
                manifest = {"test_ids": test_ids, "scores": scores.digest, "verified": scores.verified}
                if prepared.plan.top is None:
                    write_attribution(artifact, method, seed, phi, ids, manifest)
                else:
                    found = StrongestScores(phi.shape[1], prepared.plan.top)
                    found.add(phi.double(), ids)
                    write_strongest(artifact, method, seed, found, manifest)


def with_stored_data(prepared: PreparedExperiment) -> PreparedExperiment:
    """The same with the samples that :func:`publish_inputs` has written, so that those of the problem need not be kept in memory.

    Large ones are mapped from the files that the workers of this machine share. CorruptError for damaged files.
    """
    if sum(part.nbytes for part in (*prepared.train, *prepared.test)) <= SHARED_BYTES:
        return prepared
    train, test = (read_data(prepared.store, prepared.plan.keys.data, name) for name in ("train", "test"))
    return replace(prepared, train=train, test=test)
