"""Optimizers: update rules by name. ``OPTIMIZERS.register`` or an entry point of the group ``genrep_dist.optimizers`` adds one."""

from __future__ import annotations

from genrep_dist.extension import build, returned
from genrep_dist.problems.protocol import Recipe
from genrep_dist.registry import Registry
from genrep_dist.training.optimizers.base import Optimizer
from genrep_dist.training.optimizers.sgd import SGD

OPTIMIZERS: Registry[type[Optimizer]] = Registry("optimizer", "genrep_dist.optimizers", Optimizer)
OPTIMIZERS.register("sgd", SGD)


def make_optimizer(recipe: Recipe) -> Optimizer:
    """The optimizer that ``recipe`` names, with its settings. Raises ConfigError for an unknown name."""
    return build(OPTIMIZERS.get(recipe.optimizer), recipe)


def identity_gap_reasons(recipe: Recipe) -> list[str]:
    """Why the tracking identities (Eq. 8, 10; TracInCP) do not hold for models trained with ``recipe``; empty if they hold.

    The one place that decides this. Rounding (``recipe.precision``) is not an optimizer's matter and is not covered.
    """
    optimizer = make_optimizer(recipe)
    return returned(list, optimizer, "identity_gap_reasons", optimizer.identity_gap_reasons())
