"""How fast units of work end, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 60.0
"""The rate is that of the last minute, so that a slow start, as of Ray's workers, is forgotten."""
MIN_EVENTS = 8
"""The rate is of at least so many ends of units, if there were so many: units may be longer than the window."""


class Pace:
    """The rate of the units of one stage that have ended since this object was made. ``clock``: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._done = 0
        self._events: deque[tuple[float, int]] = deque([(self._began, 0)])  # when so many units had ended

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Units per second, up to the last one that ended; 0 before the first one."""
        (first, before), (last, done) = self._events[0], self._events[-1]
        return (done - before) / max(last - first, 1e-9) if done > before else 0.0

    def add(self, units: int) -> None:
        """``units`` have ended now."""
        now = self._clock()
        self._done += units
        self._events.append((now, self._done))
        while len(self._events) > MIN_EVENTS + 1 and self._events[1][0] < now - WINDOW_SECONDS:
            self._events.popleft()

    def seconds_left(self, units: float) -> float | None:
        """Seconds until ``units`` more have ended, counted from now; None if the rate is not known."""
        if not self.rate:
            return None
        return max(0.0, units / self.rate - (self._clock() - self._events[-1][0]))
