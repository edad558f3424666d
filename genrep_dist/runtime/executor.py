"""What an executor is: something that runs units, each until it succeeds or has failed as often as it may."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from genrep_dist.errors import ConfigError, ConvergenceError, CorruptError, MethodError, ProblemError
from genrep_dist.stages.job import Job
from genrep_dist.units import StageName, Unit

HOPELESS = (ConfigError, MethodError, ProblemError, ConvergenceError, CorruptError)
"""Failures that another attempt at the same unit cannot mend."""


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: with ``statistics``, or with the ``error`` of its last attempt; ``crashed``: its process was ended by it."""

    unit: Unit
    statistics: dict[str, float]
    attempts: int
    error: BaseException | None = None
    crashed: bool = False


class Executor(Protocol):
    """Runs units in any order and yields each unit's outcome once, as it ends. A failing unit does not hold the others.

    ``slots``: how many units of `retrain` run at once; ``memory_bytes``: of all machines together.
    """

    name: str
    slots: int
    memory_bytes: int

    def slots_for(self, stage: StageName) -> int:
        """How many units of a stage run at once."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        """Run units of one stage. With ``actors``, long-lived workers that keep the model take them; else stateless tasks.

        ``units`` are drawn as there is room for them, so that a few are in flight whatever their number. Closing the generator
        before its end abandons what is in flight.
        """

    def close(self) -> None: ...
