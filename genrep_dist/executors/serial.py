"""The executor that runs units one after the other in the current process."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable

import psutil

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.executors.base import Outcome
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.execute import execute


class SerialExecutor:
    """Runs each unit at most ``1 + retries`` times. A unit that crashes ends the run with it."""

    name = "serial"
    slots = 1

    def __init__(self, retries: int = 0) -> None:
        self._retries = retries
        self.memory_bytes = int(psutil.virtual_memory().total)

    @classmethod
    def from_resources(cls, resources: ResourcesSection, *, address: str | None = None) -> SerialExecutor:
        del address
        return cls(resources.retries)

    def slots_for(self, stage: StageName) -> int:
        del stage
        return self.slots

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        del actors
        for unit in units:
            for attempt in itertools.count(1):
                outcome = _attempt(job, unit, attempt)
                if not outcome.needs_retry(self._retries):
                    yield outcome
                    break

    def close(self) -> None:
        pass


def _attempt(job: Job, unit: Unit, attempt: int) -> Outcome:
    try:
        return Outcome(unit, execute(job, unit), attempt)
    except Exception as error:
        return Outcome.failed(unit, attempt, error)
