"""Optimizers: update rules by name. ``OPTIMIZERS.register`` or an entry point of the group ``genrep_dist.optimizers`` adds one."""

from __future__ import annotations

from dataclasses import replace

import torch

from genrep_dist.core.optimizers import OPTIMIZERS
from genrep_dist.errors import ProblemError
from genrep_dist.extension import build, returned
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import OPTIMIZER_SETTINGS, GroupedOptimizer, OptimizedParameters, Optimizer, Rule

__all__ = ["OPTIMIZERS", "Optimizer", "identity_gap_reasons", "make_optimizer"]


def make_optimizer(recipe: Recipe) -> Optimizer:
    """The optimizer that ``recipe`` names, with its settings, parameter groups and clipping.

    Raises ConfigError for an unknown name, ProblemError for settings that the optimizer does not have.
    """
    main = _make_rule(recipe)
    if not recipe.param_groups and recipe.clip_norm is None:
        return main
    groups = []
    for group in recipe.param_groups:
        own = recipe if group.weight_decay is None else replace(recipe, weight_decay=group.weight_decay)
        rate = 1.0 if group.learning_rate is None else group.learning_rate / recipe.learning_rate
        groups.append((group.params, Rule(_make_rule(own), rate)))
    return GroupedOptimizer(main, groups, recipe.clip_norm)


def _make_rule(recipe: Recipe) -> Optimizer:
    kind = OPTIMIZERS.get(recipe.optimizer)
    defaults = Recipe(1, 1, 1.0, optimizer=recipe.optimizer)
    for name in OPTIMIZER_SETTINGS:
        if name not in kind.settings and getattr(recipe, name) != getattr(defaults, name):
            raise ProblemError(
                "the optimizer does not have this setting",
                where=f"recipe.{name}",
                expected=f"settings of {recipe.optimizer}: {', '.join(kind.settings)}",
                got=f"{name}: {getattr(recipe, name)}",
                remedy=f"leave it out, or set recipe.{name}: {getattr(defaults, name)}, or choose another recipe.optimizer",
            )
    optimizer: Optimizer = build(kind, recipe)
    return optimizer


def state_copies(recipe: Recipe) -> int:
    """How many tensors of a parameter's shape the optimizer of ``recipe`` keeps for it."""
    parameter = torch.zeros(2, 3)
    (state,) = OptimizedParameters(make_optimizer(recipe), [parameter]).state
    return sum(value.shape == parameter.shape for value in state.values())


def has_preconditioner(recipe: Recipe) -> bool:
    """Whether the optimizer of ``recipe`` has a preconditioner, tried on a parameter after one step."""
    optimizer, parameter = make_optimizer(recipe), torch.ones(2)
    optimized = OptimizedParameters(optimizer, [parameter])
    optimized.step([torch.ones(2)], recipe.learning_rate)
    return optimizer.preconditioner(parameter, optimized.state[0]) is not None


def identity_gap_reasons(recipe: Recipe) -> list[str]:
    """Why the tracking identities (Eq. 8, 10; TracInCP) do not hold for models trained with ``recipe``; empty if they hold.

    The one place that decides this. Rounding (``recipe.precision``) is not an optimizer's matter and is not covered.
    """
    optimizer = make_optimizer(recipe)
    reasons = returned(list, optimizer, "identity_gap_reasons", optimizer.identity_gap_reasons())
    if recipe.augment is not None:
        reasons = [*reasons, "augmentation: steps are taken on the augmented rows, and explanations are of the rows as they are"]
    return reasons
