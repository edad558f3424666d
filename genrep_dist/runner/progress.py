"""How a run tells the world where it is. Libraries stay quiet: whoever wants to see something passes an object of this shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from genrep_dist.executors.base import Outcome
from genrep_dist.runner.failures import Failures
from genrep_dist.units import Unit


class Progress(Protocol):
    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins; ``done`` of its ``total`` units were finished in an earlier run."""

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        """``units`` more are finished."""

    def message(self, text: str) -> None:
        """Something that a reader should know."""


class Silence:
    """The progress of a library: none."""

    def stage(self, name: str, total: int, done: int) -> None:
        pass

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass


@dataclass
class Count:
    """Units of one stage: ``done`` of ``total``, ``before`` of them in an earlier run; ``running``: handed to the executor and not back.

    A unit of `retrain` is a model. ``seconds``: from the stage's beginning to the last unit that ended.
    """

    total: int
    done: int
    before: int
    running: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def rate(self) -> float:
        """Units a second in this run; 0 while none has ended."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None while there is none."""
        return self.left / self.rate if self.rate > 0 else None

    def plain(self) -> dict[str, Any]:
        """For a record, a gauge or a table."""
        counted = {"total": self.total, "done": self.done, "before": self.before, "running": self.running, "left": self.left}
        return {**counted, "failed": self.failed, "rate": self.rate, "seconds": self.seconds, "seconds_left": self.seconds_left}


@dataclass
class Tally:
    """Counts what a run does and hands it on to ``shown``. ``check`` is called each time, and may raise."""

    shown: Progress = field(default_factory=Silence)
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    counts: dict[str, Count] = field(default_factory=dict)
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        self._current = Count(0, 0, 0)
        self._began = self.clock()

    def stage(self, name: str, total: int, done: int) -> None:
        """As of :class:`Progress`. A stage that comes again (tuning, rounds of seeds) is counted anew."""
        self.check()
        self._current = self.counts[name] = Count(total, done, done)
        self._began = self.clock()
        self.shown.stage(name, total, done)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        """As of :class:`Progress`."""
        self._current.done += units
        self.shown.advance(units, statistics)

    def message(self, text: str) -> None:
        self.shown.message(text)

    def taken(self, unit: Unit) -> None:
        """The executor has drawn a unit."""
        self.check()
        self._current.running += unit.size

    def ended(self, outcome: Outcome) -> None:
        """A unit has ended, well or for good."""
        count, units = self._current, outcome.unit.size
        count.running -= units
        count.seconds = self.clock() - self._began
        self.failures.add(outcome)
        if outcome.error is None:
            self.advance(units, outcome.statistics)
        else:
            count.failed += units
            self.shown.message(f"failed after {outcome.attempts} attempts: {outcome.unit.label}")
        self.check()

    def again(self, outcome: Outcome) -> None:
        """What a failed unit held is tried anew, by other units."""
        self._current.failed -= outcome.unit.size
        self.failures.forget(outcome)

    def snapshot(self) -> dict[str, Any]:
        """All counts as plain data: ``stages`` in the order in which they began, ``failures``."""
        return {"stages": {name: count.plain() for name, count in list(self.counts.items())}, "failures": self.failures.plain()}

    def text(self) -> str:
        """What is done, in a line."""
        stages = [f"{name} {count.done:,} of {count.total:,}" for name, count in self.counts.items()]
        return "done and kept: " + (", ".join(stages) or "nothing yet")
