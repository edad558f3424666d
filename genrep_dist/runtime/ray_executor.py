"""The executor on Ray. The only file that imports ray."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from genrep_dist.errors import GenRepError
from genrep_dist.runtime.capacity import Resources, refuse_unschedulable, workers_held
from genrep_dist.runtime.executor import HOPELESS, Outcome
from genrep_dist.stages.job import Job
from genrep_dist.units import Unit

IN_FLIGHT_PER_SLOT = 2
"""Tasks submitted ahead of each slot: enough that no slot waits for the driver, few enough that a sweep does not fill it."""


def _execute(job: Job, unit: Unit) -> dict[str, float]:
    from genrep_dist.stages.execute import execute

    return execute(job, unit)


class _Worker:
    """An actor: a process that keeps its model between the row blocks that it is handed."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self, unit: Unit) -> dict[str, float]:
        return _execute(self._job, unit)


class RayExecutor:
    """Runs units as Ray tasks, or on a pool of actors, with bounded work in flight.

    A unit whose process, node or attempt fails is submitted again, at most ``retries`` times; units are idempotent, because each
    writes one part that is whole or absent. Inside a submitted job, or with ``address``, it attaches to the running cluster;
    otherwise it starts one on this machine and stops it in the end. What is in flight when :meth:`run` is closed is cancelled.

    Raises PlanError when no node can hold a worker.
    """

    name = "ray"

    def __init__(self, *, retries: int, workers: int | None = None, address: str | None = None, num_gpus: float = 0.0) -> None:
        self._retries = retries
        self._started = False
        if not ray.is_initialized():
            self._started = True
            self._attach(address, workers)
        try:
            nodes = _schedulable_nodes(num_gpus)
        except BaseException:
            self.close()
            raise
        available = workers_held(nodes, num_gpus)
        self.memory_bytes = int(sum(node.get("memory", 0) + node.get("object_store_memory", 0) for node in nodes))
        self.slots = min(available, workers or available)
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": num_gpus}
        self._task = ray.remote(**options, max_retries=0)(_execute)
        self._actor = ray.remote(**options, max_restarts=0)(_Worker)

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        shared = ray.put(job)
        pending = iter(units)
        if actors:
            yield from self._run_on_actors(shared, pending)
        else:
            yield from self._run_as_tasks(shared, pending)

    def close(self) -> None:
        if self._started:
            ray.shutdown()
            self._started = False

    def _run_as_tasks(self, job: Any, pending: Iterator[Unit]) -> Iterator[Outcome]:
        running: dict[Any, tuple[Unit, int]] = {}
        again: list[tuple[Unit, int]] = []
        try:
            while True:
                room = max(0, self.slots * IN_FLIGHT_PER_SLOT - len(running) - len(again))
                fresh = ((unit, 1) for unit in itertools.islice(pending, room))
                for unit, attempt in itertools.chain(again, fresh):
                    running[self._task.remote(job, unit)] = (unit, attempt)
                again = []
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    outcome = self._collect(reference, *running.pop(reference))
                    if self._wants_retry(outcome):
                        again.append((outcome.unit, outcome.attempts + 1))
                    else:
                        yield outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _run_on_actors(self, job: Any, pending: Iterator[Unit]) -> Iterator[Outcome]:
        queue: list[tuple[Unit, int]] = []
        idle: list[Any] = []
        running: dict[Any, tuple[Any, Unit, int]] = {}
        started = 0
        try:
            while True:
                while len(running) < self.slots:
                    work = queue.pop() if queue else next(((unit, 1) for unit in pending), None)
                    if work is None:
                        break
                    if idle:
                        actor = idle.pop()
                    else:
                        actor, started = self._actor.remote(job), started + 1
                    running[actor.run.remote(work[0])] = (actor, *work)
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    actor, unit, attempt = running.pop(reference)
                    outcome = self._collect(reference, unit, attempt)
                    # After a failure of the process itself the actor is gone; a new one takes its place.
                    if outcome.error is None or isinstance(outcome.error, GenRepError):
                        idle.append(actor)
                    else:
                        ray.kill(actor)
                    if self._wants_retry(outcome):
                        queue.append((unit, attempt + 1))
                    else:
                        yield outcome
        finally:
            for actor in idle + [entry[0] for entry in running.values()]:
                ray.kill(actor)

    def _collect(self, reference: Any, unit: Unit, attempt: int) -> Outcome:
        try:
            return Outcome(unit, ray.get(reference), attempt)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Outcome(unit, {}, attempt, cause)
        except (RayError, GenRepError) as error:
            return Outcome(unit, {}, attempt, error)

    def _wants_retry(self, outcome: Outcome) -> bool:
        return outcome.error is not None and not isinstance(outcome.error, HOPELESS) and outcome.attempts <= self._retries

    def _attach(self, address: str | None, workers: int | None) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        handler = signal.getsignal(signal.SIGTERM)
        if address is not None:
            # Resource arguments are an error where a cluster exists already.
            ray.init(address=address, **quiet)
        elif "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            ray.init(address="local", num_cpus=workers or os.cpu_count() or 1, include_dashboard=False, **quiet)
        # Ray takes SIGTERM for itself; whoever handled it before does so again.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _schedulable_nodes(num_gpus: float) -> list[Resources]:
    """What each living node has. PlanError when none can hold a worker, after the seconds of GENREP_WAIT_FOR_NODES."""
    deadline = time.monotonic() + float(os.environ.get("GENREP_WAIT_FOR_NODES", "0"))
    asked = False
    while True:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        if workers_held(nodes, num_gpus):
            return nodes
        if time.monotonic() >= deadline:
            refuse_unschedulable(nodes, num_gpus)
        if not asked:
            # A cluster that grows by itself does so for what is asked of it.
            ray.autoscaler.sdk.request_resources(bundles=[{"CPU": 1, "GPU": num_gpus} if num_gpus else {"CPU": 1}])
            asked = True
        time.sleep(1.0)
