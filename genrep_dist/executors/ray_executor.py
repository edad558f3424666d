"""The executor on Ray. The only file that imports ray."""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError, WorkerCrashedError
from ray.experimental.internal_kv import _internal_kv_exists
from ray.util.metrics import Gauge

from genrep_dist.config.sections import ResourcesSection
from genrep_dist.errors import ConfigError, GenRepError, UnitError
from genrep_dist.executors.base import HOPELESS, Outcome
from genrep_dist.executors.capacity import Demand, Resources, all_demands, demand_of, slots, unschedulable
from genrep_dist.executors.head_watch import HeadWatch
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job

IN_FLIGHT_PER_SLOT = 2
"""Tasks submitted ahead of each slot: enough that no slot waits for the driver, few enough that a sweep does not fill it."""
RECOUNT_SECONDS = 10.0
"""How often the nodes of the cluster are counted while units run."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

Work = Callable[[Job, Unit], dict[str, float]]


def _execute(job: Job, unit: Unit) -> dict[str, float]:
    from genrep_dist.workflow.execute import execute

    return execute(job, unit)


class _Worker:
    """An actor: a process that keeps its model between the row blocks that it is handed."""

    def __init__(self, job: Job, work: Work) -> None:
        self._job, self._work = job, work

    def ready(self) -> dict[str, float]:
        return {}

    def run(self, unit: Unit) -> dict[str, float]:
        return self._work(self._job, unit)


class RayExecutor:
    """Runs units as Ray tasks, or on a pool of actors, with bounded work in flight.

    A unit whose process, node or attempt fails is submitted again, at most ``resources.retries`` times; units are idempotent, because
    each writes one part that is whole or absent. Inside a submitted job, or with ``address``, it attaches to the running cluster;
    otherwise it starts one on this machine and stops it in the end. Tasks in flight when :meth:`run` is closed are abandoned: they end
    with this driver's connection, at :meth:`close`; in a session that the caller has opened they go on to their end, and are kept.

    ``work`` is what a worker does with a unit. Raises PlanError when the nodes cannot hold the workers that ``resources`` declare.
    """

    name = "ray"

    def __init__(self, resources: ResourcesSection, *, address: str | None = None, work: Work = _execute) -> None:
        self._resources, self._retries, self._work = resources, resources.retries, work
        self._spared: set[Unit] = set()
        """Units of which an attempt has ended otherwise than with its process."""
        self._started = False
        self._gauges: _Gauges | None = None
        self._head: HeadWatch | None = None
        if not ray.is_initialized():
            self._started = True
            self._attach(address)
        try:
            self._nodes = _schedulable_nodes(resources)
        except BaseException:
            self.close()
            raise
        self._counted = time.monotonic()
        self.memory_bytes = int(sum(node.get("memory", 0) + node.get("object_store_memory", 0) for node in self._nodes))

    @property
    def slots(self) -> int:
        return self.slots_for("retrain")

    def slots_for(self, stage: StageName) -> int:
        return slots(self._nodes, demand_of(self._resources, stage, self._nodes))

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        pending = iter(units)
        first = next(pending, None)
        if first is None:
            return
        demand = demand_of(self._resources, first.stage, self._nodes)
        # Ray's head would keep a record of some kB of each of the last 100,000 tasks. How far a run is says its own progress.
        options: dict[str, Any] = {"num_cpus": demand.num_cpus, "num_gpus": demand.num_gpus, "enable_task_events": False}
        if demand.memory_bytes:
            options["memory"] = demand.memory_bytes
        source = itertools.chain([first], pending)
        try:
            shared = ray.put(job)
            if actors:
                yield from self._run_on_actors(ray.remote(**options, max_restarts=0)(_Worker), shared, source, demand)
            else:
                yield from self._run_as_tasks(ray.remote(**options, max_retries=0)(self._work), shared, source, demand)
        except RayError as error:
            # What befalls a unit is in its outcome; this is the cluster itself, such as a head that has come back without its memory.
            raise UnitError(
                "the Ray cluster failed under this run",
                where=self._head.address if self._head is not None else "",
                got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300],
                remedy="nothing that is committed is lost: start a cluster anew and run the same command there, it goes on from here",
            ) from error

    def show(self, experiment: str, counts: Mapping[str, Any]) -> None:
        """The counts as metrics of Ray, for Prometheus: names begin with `ray_genrep_`."""
        if self._gauges is None:
            self._gauges = _Gauges()
        self._gauges.show(experiment, counts)

    def close(self) -> None:
        if self._head is not None:
            self._head.close()
        if self._started:
            ray.shutdown()
            self._started = False

    def _run_as_tasks(self, task: Any, job: Any, pending: Iterator[Unit], demand: Demand) -> Iterator[Outcome]:
        # None is cancelled when this is closed: a cancellation that meets the end of its task aborts the whole process of the driver.
        running: dict[Any, tuple[Unit, int]] = {}
        again: list[tuple[Unit, int]] = []
        while True:
            room = max(0, self._slots_now(demand) * IN_FLIGHT_PER_SLOT - len(running) - len(again))
            fresh = ((unit, 1) for unit in itertools.islice(pending, room))
            for unit, attempt in itertools.chain(again, fresh):
                running[task.remote(job, unit)] = (unit, attempt)
            again = []
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=RECOUNT_SECONDS)
            for reference in done:
                outcome = self._collect(reference, *running.pop(reference))
                if self._wants_retry(outcome):
                    again.append((outcome.unit, outcome.attempts + 1))
                else:
                    yield self._settled(outcome)

    def _run_on_actors(self, actor: Any, job: Any, pending: Iterator[Unit], demand: Demand) -> Iterator[Outcome]:
        """Hand each unit to the first actor that is free; a slow one holds nobody else.

        An actor is started for each unit that waits, up to the most that were asked for or that fit; those that do not fit yet wait
        for nodes, and nothing is handed to them before they are there. One that finds no work is let go, down to ``demand.least``.
        """
        waiting: deque[tuple[Unit, int]] = deque()
        starting: dict[Any, Any] = {}
        idle: list[Any] = []
        running: dict[Any, tuple[Any, Unit, int]] = {}
        try:
            while True:
                most = demand.most or self._slots_now(demand)
                while len(starting) + len(idle) + len(running) < most or idle:
                    if len(waiting) <= len(starting):
                        fresh = next(pending, None)
                        if fresh is not None:
                            waiting.append((fresh, 1))
                        elif not (idle and waiting):
                            break
                    if idle:
                        free, work = idle.pop(), waiting.popleft()
                        running[free.run.remote(work[0])] = (free, *work)
                    else:
                        new = actor.remote(job, self._work)
                        starting[new.ready.remote()] = new
                if not running and not waiting:
                    return
                while idle and len(idle) + len(running) + len(starting) > demand.least:
                    ray.kill(idle.pop())
                done, _ = ray.wait([*running, *starting], num_returns=1, timeout=RECOUNT_SECONDS)
                for reference in done:
                    if reference in starting:
                        new = starting.pop(reference)
                        error = _error_of(reference)
                        if error is None:
                            idle.append(new)
                            continue
                        ray.kill(new)
                        if not waiting:
                            continue
                        # The process did not even start. That is charged to a unit: it must not go on for ever. Nor is it its fault.
                        unit, attempt = waiting.popleft()
                        outcome = Outcome(unit, {}, attempt, error)
                    else:
                        free, unit, attempt = running.pop(reference)
                        outcome = self._collect(reference, unit, attempt)
                        # After a failure of the process itself the actor is gone; a new one takes its place.
                        if outcome.error is None or isinstance(outcome.error, GenRepError):
                            idle.append(free)
                        else:
                            ray.kill(free)
                    if self._wants_retry(outcome):
                        waiting.append((unit, attempt + 1))
                    else:
                        yield self._settled(outcome)
        finally:
            for one in [*starting.values(), *idle, *(entry[0] for entry in running.values())]:
                ray.kill(one)

    def _slots_now(self, demand: Demand) -> int:
        """Workers that fit on the nodes that are there: others may have joined or gone."""
        if time.monotonic() - self._counted > RECOUNT_SECONDS:
            # Asked by a head that was started again, listing nodes would abort this process; this only raises.
            _internal_kv_exists(b"genrep")
            self._nodes, self._counted = _living_nodes() or self._nodes, time.monotonic()
        return slots(self._nodes, demand)

    def _collect(self, reference: Any, unit: Unit, attempt: int) -> Outcome:
        try:
            return Outcome(unit, ray.get(reference), attempt)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Outcome(unit, {}, attempt, cause)
        except (RayError, GenRepError) as error:
            return Outcome(unit, {}, attempt, error, crashed=isinstance(error, WorkerCrashedError | ActorDiedError))

    def _wants_retry(self, outcome: Outcome) -> bool:
        if outcome.error is not None and not outcome.crashed:
            self._spared.add(outcome.unit)
        return outcome.error is not None and not isinstance(outcome.error, HOPELESS) and outcome.attempts <= self._retries

    def _settled(self, outcome: Outcome) -> Outcome:
        """The last outcome of a unit. It has crashed if each of its attempts did: one whose last attempt met a lost node is no poison."""
        if outcome.unit not in self._spared:
            return outcome
        self._spared.discard(outcome.unit)
        return replace(outcome, crashed=False)

    def _attach(self, address: str | None) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        if address is not None:
            # Resource arguments are an error where a cluster exists already.
            _connect(address)
        elif "RAY_ADDRESS" in os.environ:
            _connect(None)
        else:
            _private_token()
            ray.init(address="local", num_cpus=_local_cpus(self._resources), include_dashboard=False, **_QUIET)
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        # Ray takes SIGTERM for itself; whoever handled it before does so again.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _error_of(reference: Any) -> RayError | None:
    """Why an actor is not ready; None when it is."""
    try:
        ray.get(reference)
    except RayError as error:
        return error
    return None


class _Gauges:
    """What Prometheus reads from the node on which the driver runs."""

    def __init__(self) -> None:
        tags = ("experiment", "stage")
        self._units = Gauge("genrep_units", "Units of work; of retrain, models.", tag_keys=(*tags, "state"))
        self._rate = Gauge("genrep_units_per_second", "Units that ended, a second; of retrain, models.", tag_keys=tags)
        self._left = Gauge("genrep_seconds_left", "Of a stage, at its present rate.", tag_keys=tags)
        self._failed = Gauge("genrep_failures", "Units that failed for good.", tag_keys=("experiment", "kind"))
        self._retried = Gauge("genrep_retried", "Attempts that failed and were made again.", tag_keys=("experiment",))

    def show(self, experiment: str, counts: Mapping[str, Any]) -> None:
        for stage, count in counts["stages"].items():
            tags = {"experiment": experiment, "stage": stage}
            for state in ("done", "running", "left", "failed"):
                self._units.set(count[state], {**tags, "state": state})
            self._rate.set(count["rate"], tags)
            if count["seconds_left"] is not None:
                self._left.set(count["seconds_left"], tags)
        for kind, failed in counts["failures"]["by_kind"].items():
            self._failed.set(failed, {"experiment": experiment, "kind": kind})
        self._retried.set(counts["failures"]["retried"], {"experiment": experiment})


def cluster_nodes(address: str) -> list[Resources]:
    """What each node of a running cluster has. ConfigError when there is none at ``address``."""
    _connect(address)
    try:
        return _living_nodes()
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Attach to the running cluster at ``address``, or at RAY_ADDRESS. ConfigError when there is none."""
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            "no Ray cluster can be reached",
            where="RAY_ADDRESS" if address is None else "--address",
            expected="the address of a running cluster, host:port or auto",
            got=f"{address or os.environ.get('RAY_ADDRESS')}: {str(error).partition(chr(10))[0]}",
            remedy="start a cluster there (ray start --head), or leave the address away to work on this machine",
        ) from error


def _private_token() -> None:
    """Make the token that keeps others out of the cluster of this machine, where there is none: readable by this user alone.

    Ray would make one itself, with the permissions of the umask.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    # Where it cannot be written Ray says so; where it is there, it may be that of a cluster.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _living_nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _local_cpus(resources: ResourcesSection) -> int:
    """CPUs of a cluster on this machine: all, or those of the workers that were asked for."""
    machine = os.cpu_count() or 1
    if resources.workers is None:
        return machine
    widest = max((stage.num_cpus or 0.0 for stage in resources.stages.values()), default=0.0)
    return max(math.ceil(resources.workers * resources.num_cpus), min(machine, math.ceil(widest)))


def _schedulable_nodes(resources: ResourcesSection) -> list[Resources]:
    """What each living node has. PlanError when they cannot hold the workers, after the seconds of GENREP_WAIT_FOR_NODES."""
    deadline = time.monotonic() + float(os.environ.get("GENREP_WAIT_FOR_NODES", "0"))
    asked = False
    while True:
        nodes = _living_nodes()
        demands = all_demands(resources, nodes)
        error = unschedulable(nodes, demands)
        if error is None:
            return nodes
        if time.monotonic() >= deadline:
            raise error
        if not asked:
            # A cluster that grows by itself does so for what is asked of it.
            needed = {"CPU": max(d.num_cpus for d in demands), "GPU": max(d.num_gpus for d in demands)}
            bundle = {name: amount for name, amount in needed.items() if amount}
            ray.autoscaler.sdk.request_resources(bundles=[bundle] * max(d.least for d in demands))
            asked = True
        time.sleep(1.0)
