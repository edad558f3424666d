"""What an executor is: something that runs units, each until it succeeds or has failed as often as it may."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from genrep_dist.errors import ConfigError, ConvergenceError, CorruptError, MethodError, ProblemError
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job

HOPELESS = (ConfigError, MethodError, ProblemError, ConvergenceError, CorruptError)
"""Failures that another attempt at the same unit cannot mend."""


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: with ``statistics``, or with the ``error`` of its last attempt; ``crashed``: each attempt ended its process."""

    unit: Unit
    statistics: dict[str, float]
    attempts: int
    error: BaseException | None = None
    crashed: bool = False


class Executor(Protocol):
    """Runs units in any order and yields each unit's outcome once, as it ends. A failing unit does not hold the others.

    ``memory_bytes``: of all machines together.
    """

    name: str
    memory_bytes: int

    @property
    def slots(self) -> int:
        """How many units of `retrain` run at once."""

    def slots_for(self, stage: StageName) -> int:
        """How many units of a stage run at once."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        """Run units of one stage. With ``actors``, long-lived workers that keep the model take them; else stateless tasks.

        ``units`` are drawn as there is room for them, so that a few are in flight whatever their number. Closing the generator
        before its end abandons what is in flight.
        """

    def close(self) -> None: ...


@runtime_checkable
class Display(Protocol):
    """An executor whose cluster shows numbers to those who watch it."""

    def show(self, experiment: str, counts: Mapping[str, Any]) -> None:
        """Show the counts of a tally (:meth:`genrep_dist.runner.progress.Tally.snapshot`)."""
