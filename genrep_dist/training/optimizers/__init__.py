"""Optimizers: update rules by name. ``OPTIMIZERS.register`` or an entry point of the group ``genrep_dist.optimizers`` adds one."""

from __future__ import annotations

from genrep_dist.core.optimizers import OPTIMIZERS
from genrep_dist.extension import build, returned
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import Optimizer

__all__ = ["OPTIMIZERS", "Optimizer", "identity_gap_reasons", "make_optimizer"]


def make_optimizer(recipe: Recipe) -> Optimizer:
    """The optimizer that ``recipe`` names, with its settings. Raises ConfigError for an unknown name."""
    optimizer: Optimizer = build(OPTIMIZERS.get(recipe.optimizer), recipe)
    return optimizer


def identity_gap_reasons(recipe: Recipe) -> list[str]:
    """Why the tracking identities (Eq. 8, 10; TracInCP) do not hold for models trained with ``recipe``; empty if they hold.

    The one place that decides this. Rounding (``recipe.precision``) is not an optimizer's matter and is not covered.
    """
    optimizer = make_optimizer(recipe)
    return returned(list, optimizer, "identity_gap_reasons", optimizer.identity_gap_reasons())
