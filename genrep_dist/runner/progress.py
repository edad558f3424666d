"""Progress of a run: the protocol of a progress display, and the counts behind it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from genrep_dist.executors.base import Outcome
from genrep_dist.redaction import redact
from genrep_dist.runner.pace import Pace
from genrep_dist.units import Unit

MAX_NAMED = 20
"""Failed units whose names are kept."""


class Progress(Protocol):
    """A progress display, which the caller of a run may pass."""

    def stage(self, name: str, total: int, done: int) -> None:
        """A stage begins; ``done`` of its ``total`` units were finished by an earlier run."""

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        """``units`` more are finished."""

    def message(self, text: str) -> None:
        """A message for the reader."""


class NoProgress:
    """Displays nothing."""

    def stage(self, name: str, total: int, done: int) -> None:
        pass

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass


@dataclass
class StageCount:
    """Units of one stage; in the retrain stage, models.

    ``before``: done by an earlier run. ``running``: given to the executor. ``seconds``: from the start of the stage to the end of its
    latest unit. ``pace``: of the units that have ended in this run.
    """

    total: int
    done: int
    before: int
    running: int = 0
    failed: int = 0
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace, repr=False, compare=False)

    @property
    def left(self) -> int:
        return self.total - self.done

    @property
    def rate(self) -> float:
        """Units per second, of the last minute; 0 before the first one ends."""
        return self.pace.rate

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None if that is 0."""
        return self.left / self.rate if self.rate > 0 else None

    def as_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("total", "done", "before", "running", "failed", "seconds")}
        return {**counts, "left": self.left, "rate": self.rate, "seconds_left": self.seconds_left}


@dataclass
class FailureCount:
    """``by_kind``: failed units by the class name of the error. ``named``: labels of the first ones. ``retried``: repeated attempts."""

    by_kind: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    retried: int = 0

    def add(self, outcome: Outcome) -> None:
        self.retried += outcome.attempts - 1
        if outcome.failure is not None:
            self.by_kind[type(outcome.error).__name__] += 1
            if len(self.named) < MAX_NAMED:
                self.named.append(outcome.unit.label)

    def remove(self, outcome: Outcome) -> None:
        """Remove a failed unit. Its attempts remain counted."""
        self.by_kind[type(outcome.error).__name__] -= 1
        if outcome.unit.label in self.named:
            self.named.remove(outcome.unit.label)

    def as_dict(self) -> dict[str, Any]:
        return {
            "by_kind": {kind: count for kind, count in dict(self.by_kind).items() if count},
            "named": list(self.named),
            "retried": self.retried,
        }


@dataclass
class ProgressCounter:
    """A :class:`Progress` that counts units and forwards to ``display``. ``check`` is called at each event and may raise.

    ``end``: when no further unit may begin, by ``clock``. ``part``: what is counted instead of the reported experiment, such as a value
    that is tried; empty otherwise.
    """

    display: Progress = field(default_factory=NoProgress)
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    end: float = math.inf
    part: str = ""
    counts: dict[str, StageCount] = field(default_factory=dict)
    failures: FailureCount = field(default_factory=FailureCount)

    def __post_init__(self) -> None:
        self._current = StageCount(0, 0, 0)
        self._started_at = self.clock()

    def end_after(self, seconds: float) -> None:
        """No unit begins later than so many ``seconds`` from now."""
        self.end = self.clock() + seconds

    @property
    def is_out_of_time(self) -> bool:
        return self.clock() >= self.end

    @contextmanager
    def also_checking(self, check: Callable[[], object]) -> Iterator[None]:
        """A context in which ``check`` is called at each event too."""
        before = self.check

        def both() -> None:
            before()
            check()

        self.check = both
        try:
            yield
        finally:
            self.check = before

    def stage(self, name: str, total: int, done: int) -> None:
        """As in :class:`Progress`. A repeated stage (tuning, rounds of seeds) is counted from the start."""
        self.check()
        self._current = self.counts[name] = StageCount(total, done, done, pace=Pace(self.clock))
        self._started_at = self.clock()
        self.display.stage(name, total, done)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self._current.done += units
        self._current.pace.add(units)
        self.display.advance(units, statistics)

    def step(self, name: str) -> None:
        """A step without units begins, such as the start of Ray. It ends when the next step or stage begins.

        Displays that have a method ``step`` show it.
        """
        self.check()
        show: Callable[[str], object] | None = getattr(self.display, "step", None)
        if show is not None:
            show(name)

    def message(self, text: str) -> None:
        self.display.message(redact(text))

    def unit_started(self, unit: Unit) -> None:
        """The executor has taken a unit."""
        self.check()
        self._current.running += unit.size

    def unit_ended(self, outcome: Outcome) -> None:
        """A unit has succeeded, or failed in all of its attempts."""
        count, units = self._current, outcome.unit.size
        count.running -= units
        count.seconds = self.clock() - self._started_at
        self.failures.add(outcome)
        if outcome.failure is None:
            self.advance(units, outcome.statistics)
        else:
            count.failed += units
            self.display.message(f"failed after {outcome.attempts} attempts: {outcome.unit.label}")
        self.check()

    def unit_split(self, outcome: Outcome) -> None:
        """The work of a failed unit is repeated in smaller units."""
        self._current.failed -= outcome.unit.size
        self.failures.remove(outcome)

    def snapshot(self) -> dict[str, Any]:
        """All counts as JSON data: ``stages`` in the order in which they began, and ``failures``; and the ``part`` that is counted."""
        stages = {name: count.as_dict() for name, count in list(self.counts.items())}
        return {"stages": stages, "failures": self.failures.as_dict(), "part": self.part}

    def summary(self) -> str:
        """One line about what is done."""
        stages = [f"{name} {count.done:,} of {count.total:,}" for name, count in self.counts.items()]
        return "done and kept: " + (", ".join(stages) or "nothing yet")
