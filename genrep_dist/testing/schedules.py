"""Conformance tests of schedules.

.. code-block:: python

    from genrep_dist.testing import ScheduleTests

    class TestMySchedule(ScheduleTests):
        def make_schedule(self):
            return MySchedule(genrep_dist.Recipe(epochs=4, batch_size=8, learning_rate=0.1))
"""

from __future__ import annotations

import math

import pytest

from genrep_dist.core.schedules import Schedule

EPOCHS = 4


class ScheduleTests:
    """Rates that follow from the step alone. A subclass defines :meth:`make_schedule`, for a recipe of four epochs."""

    def make_schedule(self) -> Schedule:
        raise NotImplementedError("return the schedule that is tested")

    @pytest.mark.parametrize("num_steps", [EPOCHS, 10 * EPOCHS])
    def test_rates_are_numbers_that_follow_from_the_step(self, num_steps: int) -> None:
        schedule = self.make_schedule()
        rates = [schedule.relative_rate(step, num_steps) for step in range(num_steps)]
        assert all(math.isfinite(rate) and rate >= 0 for rate in rates)
        assert max(rates) > 0
        again = [self.make_schedule().relative_rate(step, num_steps) for step in reversed(range(num_steps))]
        assert rates == again[::-1], "a rate depends on earlier calls"
