"""From sizes to a plan: blocks, stages with their bytes and memory, warnings; refuses what is impossible."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from genrep_dist.config.keys import Keys
from genrep_dist.errors import ConfigError, PlanError
from genrep_dist.plan import Needs, Plan, Shape, has_self_influence
from genrep_dist.workflow.blocks import block_rows, gram_tile_rows
from genrep_dist.workflow.gradients import stored_features
from genrep_dist.workflow.stages import STAGES


def make_plan(keys: Keys, shape: Shape) -> Plan:
    """Lay out the work of an experiment; refuses what is impossible.

    Raises PlanError when more test points are requested than there are, when a fraction removes everything, when a method needs
    an epoch that is never reached, and when one block does not fit the memory budget; ConfigError for resources of an unknown stage.
    """
    experiment, budget = keys.experiment, keys.experiment.resources.memory_budget
    _refuse_impossible(keys, shape)
    rows = {
        name: block_rows(name, sizes, shape.num_train, budget, experiment.num_test_points) for name, sizes in sorted(shape.kernels.items())
    }
    tiles = {name: gram_tile_rows(name, sizes, shape.num_train, budget, rows[name]) for name, sizes in shape.kernels.items()}
    plan = Plan(experiment, keys, shape, Needs.from_keys(keys), rows, tiles)
    plan = plan.with_changes(stored_features=stored_features(plan), **_retrainings(keys, shape))
    lines = (stage.plan(plan) for stage in STAGES.values())
    return plan.with_changes(stages=tuple(line for line in lines if line is not None), warnings=tuple(_warnings(plan)))


def _retrainings(keys: Keys, shape: Shape) -> dict[str, int]:
    """Counts of retrainings: all that the metrics request, those at most if no two removal sets coincide, and the largest removal."""
    experiment, num_train = keys.experiment, shape.num_train

    def requested(*, originals: bool) -> int:
        count = len(experiment.methods) * removals_of_a_method(keys, shape, originals=originals)
        for section, sets in ((experiment.lds, "subsets"), (experiment.loo, "samples")):
            count += getattr(section, sets) * section.replicates if section is not None else 0
        return len(experiment.seeds) * count

    removed = [count for section in (experiment.deletion, experiment.brittleness) if section for _, count in section.removals(num_train)]
    if experiment.lds is not None:
        removed.append(num_train - round(experiment.lds.fraction * num_train))
    return {
        "retrainings_requested": requested(originals=True),
        "retrainings_at_most": requested(originals=False),
        "most_removed": max(removed),
    }


def removals_of_a_method(keys: Keys, shape: Shape, *, originals: bool = False) -> int:
    """Retrainings that one method requests with one seed, and with ``originals`` the originals that it is compared with."""
    experiment, count = keys.experiment, 0
    for section, signs in ((experiment.deletion, len(experiment.deletion.signs)), (experiment.brittleness, 1)):
        if section is not None:
            removals = section.removals(shape.num_train)
            removing = sum(removed > 0 for _, removed in removals)
            count += experiment.num_test_points * signs * removing * section.replicates
            count += experiment.num_test_points * signs * (len(removals) - removing) * originals
    return count


def _warnings(plan: Plan) -> Iterator[str]:
    """What limits the reading of the numbers to come, each a sentence or two."""
    experiment, recipe = plan.experiment, plan.keys.recipe
    momentum, decay = recipe["momentum"], recipe["weight_decay"]
    follows = any(method.follows_training for method in experiment.parsed_methods)
    if (momentum or decay) and follows:
        yield (
            f"The models are trained with momentum {momentum:g} and weight decay {decay:g}: Eq. 10's tracked importances then no "
            "longer sum up what training did, even for a linear model, nor does TracInCP."
        )
    if recipe["precision"] != "full" and follows:
        yield (
            f"The models are trained in {recipe['precision']}, and explained and judged in their own dtype: what Eq. 10 "
            "tracks, and the trajectory that TracInCP samples, are true to that rounding."
        )
    if experiment.problem.flip_labels is not None:
        unknown = [method.name for method in experiment.parsed_methods if not has_self_influence(experiment, method)]
        if unknown:
            yield (
                f"No self-influence is known of {', '.join(unknown)}, so these are not judged by the labels that were flipped: "
                "external scores have no training samples as test points, and the true Hessian would need a solve for each."
            )
    for name, sizes in plan.shape.kernels.items():
        if sizes.slow_layers:
            yield (
                f"Per-sample gradients of these layers (kernel {name}) take more than one batched backward pass: "
                f"{'; '.join(sizes.slow_layers)}."
            )
        if name not in experiment.kernels:
            yield from experiment.kernel(name).notes()
    unverified = [name for name in experiment.judged if experiment.external[name].unverified]
    if unverified:
        yield (
            f"The scores of {', '.join(unverified)} need not say which models they were computed for (unverified: true): nothing "
            "here can verify that they are scores of the models that are judged."
        )
    if experiment.deletion.retrain == "fresh":
        yield (
            "Retrained models draw fresh random numbers (retrain: fresh): every difference holds the noise of two trainings, so "
            "intervals are several times wider than with common random numbers (retrain: same)."
        )


def _refuse_impossible(keys: Keys, shape: Shape) -> None:
    experiment = keys.experiment
    for name in experiment.resources.stages:
        if name not in STAGES:
            near = difflib.get_close_matches(name, list(STAGES), n=2)
            raise ConfigError(
                "resources of an unknown stage",
                where="resources.stages",
                expected=", ".join(STAGES),
                got=repr(name),
                remedy=f"did you mean {' or '.join(near)}?" if near else "",
            )
    if experiment.num_test_points > shape.num_test:
        raise PlanError(
            "more test points than there are",
            where="test_points",
            expected=f"at most {shape.num_test}",
            got=str(experiment.num_test_points),
        )
    for name, section in (("deletion", experiment.deletion), ("brittleness", experiment.brittleness)):
        largest = max((count for _, count in section.removals(shape.num_train)), default=0) if section is not None else 0
        if largest >= shape.num_train:
            raise PlanError(
                "a removal would take the whole training set",
                where=f"{name}.fractions or {name}.counts",
                expected=f"fewer than {shape.num_train} samples removed",
                got=f"{largest} of {shape.num_train}",
            )
    if experiment.loo is not None and experiment.loo.samples > shape.num_train:
        raise PlanError(
            "more samples are to be left out than there are",
            where="loo.samples",
            expected=f"at most {shape.num_train}",
            got=str(experiment.loo.samples),
        )
    experiment.make_target().check(shape.num_outputs)
    for method in experiment.parsed_methods:
        beyond = [epoch for epoch in keys.method_epochs(method) if epoch > keys.epochs]
        if beyond:
            where = "tracincp.checkpoints" if method.sums_checkpoints else f"methods: {method.name}"
            expected = f"epochs 0 to {keys.epochs}"
            raise PlanError("a checkpoint beyond the end of training", where=where, expected=expected, got=f"epoch {beyond[0]}")
