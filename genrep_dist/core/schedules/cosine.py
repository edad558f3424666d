"""Cosine annealing."""

from __future__ import annotations

import math

from genrep_dist.core.schedules.base import Schedule


class Cosine(Schedule):
    """Half a cosine down to zero, as ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``T_max`` the number of steps."""

    def decay(self, step: int, num_steps: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / num_steps))
