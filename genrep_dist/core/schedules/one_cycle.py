"""The one-cycle policy (Smith and Topin 2018)."""

from __future__ import annotations

import math

from genrep_dist.core.schedules.base import Schedule

START, END = 1 / 25, 1 / 25 / 1e4
"""The first and the last rate, relative to the largest: torch's ``div_factor`` and ``final_div_factor``."""
RISING_SHARE = 0.3
"""Share of the steps in which the rate rises, if the recipe says nothing: torch's ``pct_start``."""


class OneCycle(Schedule):
    """Up to the recipe's rate and down again in half cosines, as ``torch.optim.lr_scheduler.OneCycleLR`` without ``cycle_momentum``.

    ``recipe.warmup`` is the part of the run in which the rate rises; default 0.3 of it.
    """

    def decay(self, step: int, num_steps: int) -> float:
        warmup = RISING_SHARE if self.warmup is None else self.warmup
        peak = (warmup * num_steps if warmup < 1 else warmup) - 1
        if peak > 0 and step <= peak:
            return _anneal(START, 1.0, step / peak)
        left = num_steps - 1 - peak
        return _anneal(1.0, END, (step - peak) / left if left > 0 else 0.0)

    def relative_rate(self, step: int, num_steps: int) -> float:
        return self.decay(step, num_steps)


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * share) + 1)
