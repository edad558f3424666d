"""What a schedule is: the learning rate of each step, relative to the recipe's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from genrep_dist.extension import Extension

ROUNDING = 1e-9


def warmup_steps(warmup: float | None, num_steps: int) -> int:
    """Steps of the warm-up: ``warmup`` itself, or the share of ``num_steps`` that a number below 1 is, rounded up; None: no step."""
    if warmup is None:
        return 0
    # 0.1 * 30 is more than 3 in floating point.
    return math.ceil(warmup * num_steps - ROUNDING) if warmup < 1 else int(warmup)


class Schedule(Extension, ABC):
    """The learning rate of each step relative to ``recipe.learning_rate``, with the settings of one recipe.

    The rate rises linearly for the steps of ``recipe.warmup``, (t + 1) / W at step t < W. :meth:`decay` says how it goes on.
    """

    def __init__(self, recipe: Any) -> None:
        """Take the settings from ``recipe``. Raises ProblemError for impossible ones."""
        self.warmup = recipe.warmup

    @abstractmethod
    def decay(self, step: int, num_steps: int) -> float:
        """The relative rate of ``step`` (from 0) of the ``num_steps`` after the warm-up."""

    def relative_rate(self, step: int, num_steps: int) -> float:
        """The relative rate of ``step`` (from 0) of ``num_steps``."""
        warmup = warmup_steps(self.warmup, num_steps)
        return (step + 1) / warmup if step < warmup else self.decay(step - warmup, num_steps - warmup)
