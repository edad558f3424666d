"""How a run tells the world where it is. Libraries stay quiet: whoever wants to see something passes an object of this shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


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
    """Units of one stage: ``done`` of ``total``, ``before`` of them in an earlier run."""

    total: int
    done: int
    before: int


class Tally:
    """Hands on to ``shown`` what it is told, and keeps the count of each stage. ``check`` is called each time, and may raise."""

    def __init__(self, shown: Progress, check: Callable[[], None]) -> None:
        self._shown, self._check = shown, check
        self._current = ""
        self.counts: dict[str, Count] = {}

    def stage(self, name: str, total: int, done: int) -> None:
        self._check()
        self._current = name
        self.counts[name] = Count(total, done, done)
        self._shown.stage(name, total, done)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._current in self.counts:
            self.counts[self._current].done += units
        self._shown.advance(units, statistics)
        self._check()

    def message(self, text: str) -> None:
        self._shown.message(text)
