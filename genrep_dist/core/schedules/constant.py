"""A constant learning rate."""

from __future__ import annotations

from genrep_dist.core.schedules.base import Schedule


class Constant(Schedule):
    """The same rate at all steps."""

    def decay(self, step: int, num_steps: int) -> float:
        del step, num_steps
        return 1.0
