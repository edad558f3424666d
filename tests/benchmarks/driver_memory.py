"""Memory of the driver and of Ray's own processes while a run submits many units of work that do nothing.

As in every stage, a generator makes the units, two per slot are in flight in Ray, and a counter counts them when they are sent and when
they end. For comparison, such tasks are also submitted all at once. The tables show the increase of resident memory (RSS) since before the
first unit. Goal: no growth.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import psutil
import ray

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.executors.base import Outcome
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.units import Retraining, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.retrain import RetrainUnit
from tests.benchmarks import measured_on, publish, table
from tests.experiments import ROOT, experiment

PROCESSES = ("driver", "gcs_server", "raylet")
Sample = tuple[int, float, dict[str, float], int]
"""Units ended, seconds, increase of each process in MiB, units in flight."""


def nothing(job: Job, unit: Unit) -> dict[str, float]:
    del job, unit
    return {"models": 1.0}


def units(count: int) -> Iterator[RetrainUnit]:
    """Tasks of one retraining each, with as many removed samples as the paper's largest removal of 1,000."""
    removed = tuple(range(100))
    return (RetrainUnit(0, (Retraining(f"{index:064x}", 0, "same", removed),)) for index in range(count))


def memory() -> dict[str, float]:
    """RSS of the driver, gcs_server and raylet, MiB."""
    found = {"driver": psutil.Process().memory_info().rss / 2**20}
    for process in psutil.Process().children(recursive=True):
        for name in PROCESSES[1:]:
            if process.name().startswith(name):
                found[name] = found.get(name, 0.0) + process.memory_info().rss / 2**20
    return found


class Watch(ProgressCounter):
    """A counter that samples memory once per ``every`` units that end."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.samples, self.before, self.most = every, list[Sample](), memory(), 0
        self.start = time.perf_counter()

    def unit_ended(self, outcome: Outcome) -> None:
        super().unit_ended(outcome)
        count = self.counts["retrain"]
        self.most = max(self.most, count.running)
        if count.done % self.every == 0:
            self.samples.append((count.done, time.perf_counter() - self.start, above(self.before), count.running))


def above(before: dict[str, float]) -> dict[str, float]:
    now = memory()
    return {name: now.get(name, 0.0) - before.get(name, 0.0) for name in PROCESSES}


def bounded(executor: RayExecutor, count: int, every: int) -> Watch:
    """Run ``count`` units as a stage does."""
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as folder:
        prepared = prepare(experiment(), Store(folder), [str(ROOT)])
        publish_inputs(prepared)
        watch = Watch(every)
        runner = StageRunner(prepared, watch, Workers(prepared.plan.experiment, executor=executor))
        watch.stage("retrain", count, 0)
        runner._work(units(count), actors=False)
        assert watch.counts["retrain"].done == count
    return watch


def at_once(count: int, every: int) -> list[Sample]:
    """Submit all tasks to a new cluster before the first result is read."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=0)(nothing)
    job: Any = ray.put(None)
    before, start = memory(), time.perf_counter()
    waiting = [task.remote(job, unit) for unit in units(count)]
    samples = [(0, time.perf_counter() - start, above(before), len(waiting))]
    for done in itertools.count(every, every):
        if done > count:
            return samples
        ended, waiting = ray.wait(waiting, num_returns=every)
        assert len(ended) == every
        samples.append((done, time.perf_counter() - start, above(before), len(waiting)))
    raise AssertionError


def rows(samples: list[Sample]) -> list[tuple[str, ...]]:
    return [
        (f"{done:,}", f"{seconds:.0f}", *(f"{extra[name]:+.0f}" for name in PROCESSES), f"{running:,}")
        for done, seconds, extra, running in samples
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=20_000, help="number of tasks that are submitted all at once")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/driver_memory.md")
    asked = parser.parse_args()
    where = measured_on("ray")
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 2}), work=nothing)
    try:
        bounded(executor, 2_000, 2_000)  # warm-up
        watch = bounded(executor, asked.units, asked.units // 10)
    finally:
        executor.close()  # its idle actors hold the CPUs
    loop = at_once(asked.at_once, asked.at_once // 4)
    columns = ("units ended", "seconds", *(f"{name}, MiB" for name in PROCESSES), "in flight")
    drivers = [extra["driver"] for _, _, extra, _ in watch.samples]
    per_unit = (drivers[-1] - drivers[0]) / (watch.samples[-1][0] - watch.samples[0][0]) * 2**20
    publish(
        "driver_memory",
        f"The driver's memory during {asked.units:,} units of work",
        [
            " ".join(str(__doc__).split()),
            where,
            f"At most {watch.most} units were in flight at any time. Between the first and the last sample, the driver's memory grew by "
            f"{per_unit:.0f} bytes per unit. The rate was {asked.units / watch.samples[-1][1]:,.0f} units per second.",
            table(columns, rows(watch.samples)),
            f"{asked.at_once:,} such tasks, submitted all at once:",
            table(columns, rows(loop)),
        ],
        write=asked.write,
    )


if __name__ == "__main__":
    main()
