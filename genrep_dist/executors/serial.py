"""The executor without a cluster: one unit after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import psutil

from genrep_dist.executors.base import HOPELESS, Outcome
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.execute import execute


class SerialExecutor:
    """Runs each unit at most ``1 + retries`` times. A unit that ends its process ends the run: there is no other process to survive it."""

    name = "serial"
    slots = 1

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self.memory_bytes = int(psutil.virtual_memory().total)

    def slots_for(self, stage: StageName) -> int:
        del stage
        return self.slots

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        del actors
        for unit in units:
            yield self._attempt(job, unit)

    def close(self) -> None:
        pass

    def _attempt(self, job: Job, unit: Unit) -> Outcome:
        attempts = 0
        while True:
            attempts += 1
            try:
                return Outcome(unit, execute(job, unit), attempts)
            except HOPELESS as error:
                return Outcome(unit, {}, attempts, error)
            except Exception as error:
                if attempts > self._retries:
                    return Outcome(unit, {}, attempts, error)
