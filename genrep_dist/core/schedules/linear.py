"""Linear decay."""

from __future__ import annotations

from genrep_dist.core.schedules.base import Schedule


class Linear(Schedule):
    """Down to zero in equal steps, as ``torch.optim.lr_scheduler.LinearLR`` from 1 to 0 in as many iterations as there are steps."""

    def decay(self, step: int, num_steps: int) -> float:
        return 1 - step / num_steps
