"""The protocol of an executor, which runs units of work, and the outcome of a unit."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from genrep_dist.errors import FailureKind, GenRepError
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job


@dataclass(frozen=True)
class Failure:
    """The ``error`` of a failed attempt, and its ``kind``, which decides about retries and about the rest of the run."""

    error: BaseException
    kind: FailureKind

    @classmethod
    def from_error(cls, error: BaseException) -> Failure:
        """Errors of this package state their kind themselves. Any other error is retryable."""
        if isinstance(error, GenRepError):
            return cls(error, error.failure_kind)
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        return cls(error, FailureKind.OUT_OF_MEMORY if out_of_memory else FailureKind.RETRYABLE)


@dataclass(frozen=True)
class Outcome:
    """The end of a unit: its ``statistics``, or the ``failure`` of its last attempt.

    The failure is of kind CRASHED only if every attempt ended its process.
    """

    unit: Unit
    statistics: dict[str, float]
    attempts: int
    failure: Failure | None = None

    @classmethod
    def failed(cls, unit: Unit, attempts: int, failure: Failure | BaseException) -> Outcome:
        return cls(unit, {}, attempts, failure if isinstance(failure, Failure) else Failure.from_error(failure))

    @property
    def error(self) -> BaseException | None:
        return None if self.failure is None else self.failure.error

    @property
    def crashed(self) -> bool:
        return self.failure is not None and self.failure.kind is FailureKind.CRASHED

    def needs_retry(self, retries: int) -> bool:
        """Whether the unit failed in a retryable way and has had at most ``retries`` attempts."""
        return self.failure is not None and self.failure.kind.is_retryable and self.attempts <= retries


class Executor(Protocol):
    """Runs units in any order and yields one outcome for each, as it ends. A failing unit does not stop the others.

    A worker runs a unit with :func:`genrep_dist.workflow.execute.execute`. :class:`genrep_dist.testing.ExecutorTests` tests the rest of
    the contract. Register an executor with :data:`genrep_dist.executors.registry.EXECUTORS`.
    """

    name: str
    memory_bytes: int
    """Memory of all machines together."""

    @property
    def slots(self) -> int:
        """The number of `retrain` units that run at once."""

    def slots_for(self, stage: StageName) -> int:
        """The number of units of ``stage`` that run at once."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        """Run units of one stage.

        ``units`` is consumed lazily, so that only a few units per slot are in flight. Closing the generator early abandons these.
        ``actors`` asks for long-lived workers that keep the model between units.
        """

    def close(self) -> None:
        """Release the workers."""


@runtime_checkable
class SupportsMetrics(Protocol):
    """An executor that can export progress metrics to its cluster."""

    def export_metrics(self, experiment: str, counts: Mapping[str, Any]) -> None:
        """``counts``: as returned by :meth:`genrep_dist.runner.progress.ProgressCounter.snapshot`."""
