"""Decay at regular epochs."""

from __future__ import annotations

from typing import Any

from genrep_dist.core.schedules.base import Schedule, warmup_steps
from genrep_dist.errors import ProblemError


class Step(Schedule):
    """Times ``gamma`` every ``step_size`` epochs of the run, as ``torch.optim.lr_scheduler.StepLR`` that is stepped once an epoch.

    A warm-up does not shift the epochs: its rise is multiplied with the decay.
    """

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        if recipe.step_size is None:
            raise ProblemError(
                "the training recipe is impossible",
                where="recipe.step_size",
                expected="with schedule 'step' a number of epochs, after each of which the rate is multiplied by recipe.gamma",
                got="None",
                remedy="set recipe.step_size",
            )
        self._step_size, self._gamma, self._epochs = recipe.step_size, recipe.gamma, recipe.epochs

    def decay(self, step: int, num_steps: int) -> float:
        factor: float = self._gamma ** (step * self._epochs // num_steps // self._step_size)
        return factor

    def relative_rate(self, step: int, num_steps: int) -> float:
        warmup = warmup_steps(self.warmup, num_steps)
        rise = (step + 1) / warmup if step < warmup else 1.0
        return rise * self.decay(step, num_steps)
