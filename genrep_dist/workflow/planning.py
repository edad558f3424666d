"""From sizes to a plan: blocks, stages with their bytes and memory, warnings; refuses what is impossible."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.config.metrics import (
    check_feasible,
    check_top,
    largest_removal,
    metric_warnings,
    needs_self_influence,
    requested_retrainings,
)
from genrep_dist.core.methods import Method
from genrep_dist.errors import PlanError
from genrep_dist.evaluation.significance import LEVEL, fewest_seeds, smallest_p
from genrep_dist.evaluation.statistics import compared_pairs
from genrep_dist.plan import Needs, Plan, Shape, derived_kernel, has_self_influence, kernel_names, reads_gram
from genrep_dist.workflow.blocks import block_rows, gram_tile_rows
from genrep_dist.workflow.gradients import stored_features
from genrep_dist.workflow.stages import stage_plans


def make_plan(keys: Keys, shape: Shape, *, refuse: bool = True) -> Plan:
    """Lay out the work of an experiment; refuses what is impossible, unless ``refuse`` is false, as for a run that exists.

    Raises PlanError when more test points are requested than there are, when a fraction removes everything, when a method needs
    an epoch that is never reached, and when one block does not fit the memory budget.
    """
    experiment, budget = keys.experiment, keys.experiment.resources.memory_budget
    if refuse:
        _refuse_impossible(keys, shape)
    points, outputs = experiment.num_test_points, shape.num_outputs
    rows = {name: block_rows(name, sizes, shape.num_train, budget, points, outputs) for name, sizes in sorted(shape.kernels.items())}
    tiles = {name: gram_tile_rows(name, sizes, shape.num_train, budget, rows[name]) for name, sizes in shape.kernels.items()}
    plan = Plan(experiment, keys, shape, Needs.from_keys(keys, shape), rows, tiles)
    plan = plan.with_changes(stored_features=stored_features(plan), **_retrainings(keys, shape))
    return plan.with_changes(stages=tuple(stage_plans(plan)), warnings=tuple(_warnings(plan)))


def _retrainings(keys: Keys, shape: Shape) -> dict[str, int]:
    """Counts of retrainings: all that the metrics request, those at most if no two removal sets coincide, and the largest removal."""
    experiment, seeds, methods = keys.experiment, len(keys.experiment.seeds), len(keys.experiment.methods)
    count = requested_retrainings(experiment, shape.num_train)
    return {
        "retrainings_requested": seeds * (methods * (count.per_method + count.originals_per_method) + count.shared),
        "retrainings_at_most": seeds * (methods * count.per_method + count.shared),
        "most_removed": largest_removal(experiment, shape.num_train),
    }


def _warnings(plan: Plan) -> Iterator[str]:
    """What limits the reading of the numbers to come, each a sentence or two."""
    experiment, recipe = plan.experiment, plan.keys.recipe
    follows = any(method.follows_training for method in experiment.parsed_methods)
    if plan.shape.identity_gap_reasons and follows:
        yield (
            "Eq. 10's tracked importances no longer sum up what training did, even for a linear model, nor does TracInCP. "
            f"Reasons: {'; '.join(plan.shape.identity_gap_reasons)}."
        )
    if plan.shape.fixed_start:
        yield (
            "All models start from the same parameters, which model() loads or fixes: seeds, and retrain: fresh, differ in the order of "
            "the data alone, and in what layers draw in training."
        )
    if recipe["precision"] != "full" and follows:
        yield (
            f"The models are trained in {recipe['precision']}, and explained and judged in their own dtype: what Eq. 10 "
            "tracks, and the trajectory that TracInCP samples, are true to that rounding."
        )
    if needs_self_influence(experiment):
        unknown = [method.name for method in experiment.parsed_methods if not has_self_influence(plan.keys, method)]
        if unknown:
            yield (
                f"No self-influence is known of {', '.join(unknown)}, so these are not judged by the labels that were flipped: "
                "external scores have no training samples as test points, the true Hessian would need a solve for each, and some methods "
                "define none."
            )
    for name, sizes in plan.shape.kernels.items():
        if sizes.slow_layers:
            yield (
                f"Per-sample gradients of these layers (kernel {name}) take more than one batched backward pass: "
                f"{'; '.join(sizes.slow_layers)}."
            )
        if name not in plan.keys.own_kernels:
            yield from experiment.kernel(name).notes()
    for names in _equal_methods(plan.keys):
        yield (
            f"{' and '.join(names)} are names of one method: their scores are equal, and each counts as a method of its own in rankings "
            "and in Holm's correction. Keep one of them."
        )
    if plan.shape.slow_derived:
        yield f"Derived kernels, for this model: {'; '.join(plan.shape.slow_derived)}."
    judged = experiment.make_target().description(plan.shape.num_outputs)
    for name in experiment.external_methods:
        scored = experiment.external[name].target.make().description(plan.shape.num_outputs)
        if scored != judged:
            yield (
                f"The scores of {name} are declared to be of another number than the one that is explained and judged here: of {scored}; "
                f"judged: {judged}. If they are of the judged one, say so in external.{name}.target."
            )
    unverified = [name for name in experiment.external_methods if experiment.external[name].unverified]
    if unverified:
        yield (
            f"The scores of {', '.join(unverified)} need not say which models they were computed for (unverified: true): nothing "
            "here can verify that they are scores of the models that are judged."
        )
    yield from metric_warnings(experiment, plan.shape.num_train)


def _equal_methods(keys: Keys) -> list[list[str]]:
    """The names of methods whose scores have one content address, where there are several."""
    experiment, found = keys.experiment, dict[str, list[str]]()
    for method in experiment.parsed_methods:
        if not method.is_external:
            found.setdefault(keys.attribution(experiment.seeds[0], method), []).append(method.name)
    return [names for names in found.values() if len(names) > 1]


def power_warnings(experiment: Experiment) -> Iterator[str]:
    """A sentence if no difference between methods can be significant, with the number of seeds that would do. For those who still plan."""
    methods, seeds = experiment.methods, len(experiment.seeds) if experiment.stop is None else experiment.stop.max_seeds
    compared = len(compared_pairs(methods, experiment.baselines))
    if compared == 0 or (smallest := smallest_p(seeds, compared)) <= LEVEL:
        return
    needed = fewest_seeds(compared)
    number = f"{compared} comparison" + ("s" if compared > 1 else "")
    why = "one seed gives no p-value" if seeds == 1 else f"the smallest with {seeds} seeds and {number} is {smallest:.2g}"
    remedy = "compare fewer methods" if needed is None else f"with {needed} seeds one can"
    yield f"No p-value can reach {LEVEL} in this experiment: {why} (sign-flip test, Holm's correction); {remedy}."


def _refuse_impossible(keys: Keys, shape: Shape) -> None:
    experiment = keys.experiment
    if experiment.num_test_points > shape.num_test:
        raise PlanError(
            "more test points than there are",
            where="test_points",
            expected=f"at most {shape.num_test}",
            got=str(experiment.num_test_points),
        )
    check_feasible(experiment, shape.num_train)
    check_top(experiment, shape.num_train)
    experiment.make_target().check(shape.num_outputs)
    for method in experiment.parsed_methods:
        _refuse_primal_without_features(keys, shape, method)
    derived = [derived_kernel(keys, name) for name in kernel_names(experiment)]
    for kernel in filter(None, derived):
        kernel.check_curvature(float(shape.is_loss_linear))
    for method in experiment.parsed_methods:
        if method.averages_checkpoints and method.networks > keys.epochs:
            raise PlanError(
                "an ensemble over checkpoints of more models than epochs",
                where=f"ensembles.{method.name}.size",
                expected=f"at most {keys.epochs}, the epochs of training",
                got=str(method.networks),
                remedy="lower the size, or average over seeds",
            )
        beyond = [epoch for epoch in keys.method_epochs(method) if epoch > keys.epochs]
        if beyond:
            where = "tracincp.checkpoints" if method.sums_checkpoints else f"methods: {method.name}"
            expected = f"epochs 0 to {keys.epochs}"
            raise PlanError("a checkpoint beyond the end of training", where=where, expected=expected, got=f"epoch {beyond[0]}")


def _refuse_primal_without_features(keys: Keys, shape: Shape, method: Method) -> None:
    """Raise PlanError for a primal system that was named, on a kernel that has no features to make it of."""
    if not (method.has_kernel and method.needs_gram):
        return
    importance = keys.experiment.importance(method.importance)
    if getattr(importance, "system", "dual") == "primal" and reads_gram(keys, shape, method.importance, method.kernel):
        raise PlanError(
            "a primal system is made of features, and this kernel has none",
            where=f"methods: {method.name}; {method.importance}.system: primal",
            expected="a kernel with features, such as ntk or last-layer",
            got=f"the kernel {method.kernel}, which is a function of two inputs",
            remedy=f"set {method.importance}.system: auto, which takes its gram",
        )
