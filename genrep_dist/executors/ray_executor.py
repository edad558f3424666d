"""The executor on Ray. This is the only file that imports ray."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import ray
from ray import cloudpickle
from ray._private.services import get_ray_address_from_environment
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
from ray.experimental.internal_kv import _internal_kv_exists
from ray.util.metrics import Gauge

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import ConfigError, FailureKind, GenRepError, PlanError, UnitError
from genrep_dist.executors import capacity
from genrep_dist.executors import worker as worker_code
from genrep_dist.executors.attempts import Attempt
from genrep_dist.executors.auth_token import create_auth_token
from genrep_dist.executors.base import Failure, Outcome
from genrep_dist.executors.capacity import NodeResources, WorkerResources, worker_resources
from genrep_dist.executors.cluster_address import check_cluster, declared_address, unreachable
from genrep_dist.executors.head_watch import AttachWatch, HeadWatch
from genrep_dist.executors.package_copies import require_same_copy
from genrep_dist.executors.worker import Worker, package_copy, run_unit
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job

IN_FLIGHT_PER_SLOT = 2
"""Tasks submitted for each slot: enough to keep every slot busy, few enough to keep memory bounded."""
RECOUNT_SECONDS = 10.0
"""How often the nodes of the cluster are counted while units run."""
IDLE_SECONDS = 10.0
"""How long an actor without a unit is kept while others work. A new one would load the libraries and the data again."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

Work = Callable[[Job, Unit], dict[str, float]]

# A worker with another copy of the package must run this code, not its own.
cloudpickle.register_pickle_by_value(worker_code)  # type: ignore[no-untyped-call]


def _execute(job: Job, unit: Unit) -> dict[str, float]:
    from genrep_dist.workflow.execute import execute

    return execute(job, unit, in_worker=True)


class RayExecutor:
    """Runs units as Ray tasks, or on a pool of actors, with a bounded number in flight.

    A unit whose process, node or attempt fails is submitted again, at most ``resources.retries`` times. Inside a submitted job, or with
    ``address``, the executor attaches to the running cluster; otherwise it starts a cluster on this machine and stops it in
    :meth:`close`. Tasks in flight when :meth:`run` is closed end with the driver's connection; in a session that the caller opened they
    run to their end, and their results are kept.

    ``work`` runs a unit in a worker, after the worker has proved that its copy of this package is the driver's. Units whose workers have
    GPUs, and all units in a cluster that this executor started, run on actors always. Actors outlive :meth:`run`: the next one uses them
    if its workers have the same resources, and ends them otherwise. Raises PlanError if the nodes cannot run the workers that
    ``resources`` declares, ConfigError if there is no cluster at ``address``, UnitError if none starts on this machine.
    """

    name = "ray"

    def __init__(self, resources: ResourcesSection, *, address: str | None = None, work: Work = _execute) -> None:
        self._resources, self._retries, self._work = resources, resources.retries, work
        self._copy = package_copy()
        self._pool = _ActorPool()
        self._payload: tuple[Job, list[Any]] | None = None
        self._gauges: _Gauges | None = None
        self._head: HeadWatch | None = None
        self._owns_session = not ray.is_initialized()
        self._owns_cluster = False
        if self._owns_session:
            self._attach(address)
        try:
            self._nodes = _schedulable_nodes(resources)
        except BaseException:
            self.close()
            raise
        self._counted_at = time.monotonic()
        self.memory_bytes = int(sum(node.get("memory", 0) + node.get("object_store_memory", 0) for node in self._nodes))

    @property
    def slots(self) -> int:
        return self.slots_for("retrain")

    def slots_for(self, stage: StageName) -> int:
        return capacity.num_slots(self._nodes, worker_resources(self._resources, stage, self._nodes))

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        units = iter(units)
        first = next(units, None)
        if first is None:
            return
        worker = worker_resources(self._resources, first.stage, self._nodes)
        attempts = (Attempt(unit) for unit in itertools.chain([first], units))
        try:
            if self._payload is None or self._payload[0] is not job:
                self._payload = (job, [ray.put((job, self._work))])
            payload = self._payload[1]
            # A task with a GPU would have a process of its own, and load libraries, data and model again: one that is used by several
            # tasks would keep the GPU that it was given first. An actor has its GPU for as long as it lives. Where nobody else waits for
            # the CPUs, the actors of one stage serve the next: tasks would be new processes, which load everything again.
            if actors or worker.num_gpus or self._owns_cluster:
                self._pool.require(worker)
                # A task's process is used again after an error, so it is here. The memory of a GPU may be left in pieces.
                yield from self._run_on_actors(payload, attempts, worker, reuse_after_errors=not (actors or worker.num_gpus))
            else:
                self._pool.end()  # tasks need what idle actors reserve
                yield from self._run_as_tasks(ray.remote(**_options(worker), max_retries=0)(run_unit), payload, attempts, worker)
        except RayError as error:
            # Failures of units are in their outcomes. This is the cluster itself, such as a head that restarted without its state.
            raise UnitError(
                "the Ray cluster failed during this run",
                where=self._head.address if self._head is not None else "",
                got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300],
                remedy="committed results are kept: start a new cluster and run the same command there to continue",
            ) from error

    def export_metrics(self, experiment: str, counts: Mapping[str, Any]) -> None:
        """Export the counts as Ray metrics for Prometheus, under names that begin with `ray_genrep_`."""
        if self._gauges is None:
            self._gauges = _Gauges()
        self._gauges.set(experiment, counts)

    def close(self) -> None:
        if self._head is not None:
            self._head.close()
        if ray.is_initialized():
            self._pool.end()
        if self._owns_session:
            ray.shutdown()
            self._owns_session = False

    def _run_as_tasks(self, task: Any, payload: Any, attempts: Iterator[Attempt], worker: WorkerResources) -> Iterator[Outcome]:
        # Closing this generator cancels nothing: cancelling a task at the moment it ends aborts the driver's process.
        running: dict[Any, Attempt] = {}
        retries: list[Attempt] = []
        while True:
            room = max(0, self._count_slots(worker) * IN_FLIGHT_PER_SLOT - len(running) - len(retries))
            for attempt in itertools.chain(retries, itertools.islice(attempts, room)):
                running[task.remote(self._copy["digest"], ray.get, payload, [ray.put(attempt.unit)])] = attempt
            retries = []
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=RECOUNT_SECONDS)
            for reference in done:
                attempt = running.pop(reference)
                following = attempt.following(self._collect(reference, attempt), self._retries)
                if isinstance(following, Outcome):
                    yield following
                else:
                    retries.append(following)

    def _run_on_actors(
        self, payload: Any, attempts: Iterator[Attempt], worker: WorkerResources, *, reuse_after_errors: bool
    ) -> Iterator[Outcome]:
        """Give each unit to the first idle actor, so that a slow unit does not delay the others.

        An actor is started for each waiting unit, up to the number that fits or was declared. An actor that does not fit yet waits for a
        node and gets no unit before it has started. Actors that find no unit for IDLE_SECONDS are killed, down to ``min_workers``.
        """
        waiting: deque[Attempt] = deque()
        running: dict[Any, tuple[Any, Attempt]] = {}
        pool = self._pool
        try:
            while True:
                most = worker.max_workers or self._count_slots(worker)
                while len(pool) + len(running) < most or pool.idle:
                    if len(waiting) <= len(pool.starting):
                        fresh = next(attempts, None)
                        if fresh is not None:
                            waiting.append(fresh)
                        elif not (pool.idle and waiting):
                            break
                    if pool.idle:
                        free, attempt = pool.take(), waiting.popleft()
                        running[free.run.remote(payload, attempt.unit)] = (free, attempt)
                    elif len(waiting) > len(pool.starting):
                        pool.start(self._copy["digest"])
                if not running and not waiting:
                    return
                pool.shrink(worker.min_workers - len(running))
                done, _ = ray.wait([*running, *pool.starting], num_returns=1, timeout=RECOUNT_SECONDS)
                for reference in done:
                    if reference in pool.starting:
                        new = pool.starting.pop(reference)
                        error = self._start_error(reference)
                        if error is None:
                            pool.put(new)
                            continue
                        ray.kill(new)
                        if not waiting:
                            continue
                        # The process did not start. This counts as an attempt, so that it ends, but not as a crash of the unit.
                        attempt = waiting.popleft()
                        out_of_memory = isinstance(error, OutOfMemoryError)
                        failure = Failure(error, FailureKind.OUT_OF_MEMORY) if out_of_memory else Failure.from_error(error)
                        outcome = Outcome.failed(attempt.unit, attempt.number, failure)
                    else:
                        free, attempt = running.pop(reference)
                        outcome = self._collect(reference, attempt)
                        # Only an error of this package leaves the process in a known state.
                        failed = outcome.error
                        if failed is None or isinstance(failed, GenRepError) or (reuse_after_errors and not isinstance(failed, RayError)):
                            pool.put(free)
                        else:
                            ray.kill(free)
                    following = attempt.following(outcome, self._retries)
                    if isinstance(following, Outcome):
                        yield following
                    else:
                        waiting.append(following)
        finally:
            for free, _ in running.values():
                ray.kill(free)

    def _collect(self, reference: Any, attempt: Attempt) -> Outcome:
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            failure = Failure.from_error(error.cause if isinstance(error.cause, Exception) else error)
        except (WorkerCrashedError, ActorDiedError) as error:
            failure = Failure(error, FailureKind.CRASHED)
        except OutOfMemoryError as error:
            failure = Failure(error, FailureKind.OUT_OF_MEMORY)
        except (RayError, GenRepError) as error:
            failure = Failure.from_error(error)
        else:
            return Outcome(attempt.unit, require_same_copy(self._copy, result), attempt.number)
        return Outcome.failed(attempt.unit, attempt.number, failure)

    def _start_error(self, reference: Any) -> RayError | None:
        """Why an actor did not start; None if it is ready."""
        try:
            result = ray.get(reference)
        except RayError as error:
            return error
        require_same_copy(self._copy, result)
        return None

    def _count_slots(self, worker: WorkerResources) -> int:
        """Workers that fit on the present nodes. Nodes may join and leave."""
        if time.monotonic() - self._counted_at > RECOUNT_SECONDS:
            # With a restarted head, listing nodes would abort this process. This call raises instead.
            _internal_kv_exists(b"genrep")
            self._nodes, self._counted_at = _living_nodes() or self._nodes, time.monotonic()
        return capacity.num_slots(self._nodes, worker)

    def _attach(self, address: str | None) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        if address is not None or os.environ.get("RAY_ADDRESS"):
            _connect(address)  # without resource arguments, which Ray refuses for an existing cluster
        else:
            create_auth_token()
            _start(capacity.local_cpus(self._resources))
            self._owns_cluster = True
        self._head = HeadWatch(ray.get_runtime_context().gcs_address)
        # Ray replaces the handler of SIGTERM.
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


class _ActorPool:
    """Actors without a unit: ``idle`` ones with the time since when, and ``starting`` ones by the reference that is ready with them.

    All have the resources of the last :meth:`require`.
    """

    def __init__(self) -> None:
        self.starting: dict[Any, Any] = {}
        self.idle: list[tuple[Any, float]] = []
        self._options: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.starting) + len(self.idle)

    def require(self, worker: WorkerResources) -> None:
        """End actors with other resources than those of ``worker``, and those beyond its ``max_workers``."""
        options = _options(worker)
        if options != self._options:
            self.end()
            self._options = options
        if worker.max_workers is not None:
            self._end_down_to(worker.max_workers)

    def start(self, digest: str) -> None:
        actor: Any = ray.remote(**self._options, max_restarts=0)(Worker)
        new = actor.remote(digest, ray.get)
        self.starting[new.ready.remote()] = new

    def put(self, actor: Any) -> None:
        self.idle.append((actor, time.monotonic()))

    def take(self) -> Any:
        """The actor that is idle for the shortest time."""
        return self.idle.pop()[0]

    def shrink(self, least: int) -> None:
        """End actors that are idle for longer than IDLE_SECONDS, but keep ``least``."""
        while self.idle and len(self) > least and time.monotonic() - self.idle[0][1] > IDLE_SECONDS:
            ray.kill(self.idle.pop(0)[0])

    def end(self) -> None:
        self._end_down_to(0)

    def _end_down_to(self, most: int) -> None:
        while len(self) > most:
            ray.kill(self.starting.popitem()[1] if self.starting else self.idle.pop(0)[0])


def _options(worker: WorkerResources) -> dict[str, Any]:
    """Ray's options for a worker of these resources."""
    # Ray's head would keep a record of several kB for each of the last 100,000 tasks.
    options: dict[str, Any] = {"num_cpus": worker.num_cpus, "num_gpus": worker.num_gpus, "enable_task_events": False}
    return options | ({"memory": worker.memory_bytes} if worker.memory_bytes else {})


class _Gauges:
    """Metrics that Prometheus reads from the driver's node."""

    def __init__(self) -> None:
        tags = ("experiment", "stage")
        self._units = Gauge("genrep_units", "Units of work; in the retrain stage, models.", tag_keys=(*tags, "state"))
        self._rate = Gauge("genrep_units_per_second", "Units finished per second; in the retrain stage, models.", tag_keys=tags)
        self._left = Gauge("genrep_seconds_left", "Seconds left in a stage at its present rate.", tag_keys=tags)
        self._failed = Gauge("genrep_failures", "Units that failed in all attempts.", tag_keys=("experiment", "kind"))
        self._retried = Gauge("genrep_retried", "Failed attempts that were retried.", tag_keys=("experiment",))

    def set(self, experiment: str, counts: Mapping[str, Any]) -> None:
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


def cluster_nodes(address: str) -> list[NodeResources]:
    """Resources of each node of a running cluster. ConfigError if there is none at ``address``."""
    _connect(address)
    try:
        return _living_nodes()
    finally:
        ray.shutdown()


def _start(num_cpus: int) -> None:
    """Start a cluster on this machine. UnitError if Ray's processes do not start."""
    try:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **_QUIET)
    except Exception as error:  # Ray raises a bare Exception if a process does not start in time
        ray.shutdown()
        raise UnitError(
            "Ray did not start on this machine",
            got=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300],
            remedy="committed results are kept: run the same command again when the machine is less busy, or with --serial",
        ) from error


def _connect(address: str | None) -> None:
    """Attach to the running cluster at ``address``, by default at RAY_ADDRESS. ConfigError if there is none."""
    where, declared = declared_address(address)
    wanted = str(declared)
    with ExitStack() as stack:
        try:
            found = get_ray_address_from_environment("auto", None) if wanted == "auto" else wanted
            if found != "local":
                gone = unreachable(found, where, "its head went away while this driver attached")
                stack.callback(AttachWatch("{}:{}".format(*check_cluster(found, where)), gone).close)
            ray.init(address=address, **_QUIET)
        except ConfigError:
            raise
        except (ConnectionError, ValueError, RuntimeError, RayError) as error:
            raise unreachable(wanted, where, str(error).partition("\n")[0]) from error


def _living_nodes() -> list[NodeResources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _schedulable_nodes(resources: ResourcesSection) -> list[NodeResources]:
    """Resources of each living node. Raises PlanError if the workers do not fit within the seconds of GENREP_WAIT_FOR_NODES."""
    deadline = time.monotonic() + float(os.environ.get("GENREP_WAIT_FOR_NODES", "0"))
    requested = False
    while True:
        nodes = _living_nodes()
        try:
            capacity.check_schedulable(nodes, resources)
            return nodes
        except PlanError:
            if time.monotonic() >= deadline:
                raise
        if not requested:
            # An autoscaler starts nodes for explicit requests.
            workers = capacity.all_worker_resources(resources, nodes)
            needed = {"CPU": max(w.num_cpus for w in workers), "GPU": max(w.num_gpus for w in workers)}
            bundle = {name: amount for name, amount in needed.items() if amount}
            ray.autoscaler.sdk.request_resources(bundles=[bundle] * max(w.min_workers for w in workers))
            requested = True
        time.sleep(1.0)
