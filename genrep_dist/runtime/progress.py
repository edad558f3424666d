"""How a run tells the world where it is. Libraries stay quiet: whoever wants to see something passes an object of this shape."""

from __future__ import annotations

from collections.abc import Mapping
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
