"""The cost of scheduling: retraining tasks of the demo through Ray with one worker, by the number of models per task.

The total time runs from the submission of the first task to the end of the last. The overhead is this time without the seconds in which
models are built, trained and used for prediction: submission, lookups, writing to the ledger and reporting. The models are those of the
demo with two seeds, with the removal sets that its methods request. An earlier task starts the worker process (imports, data, choice of the
pack size), which a run does once per process. Goal: under 3% at the size that the run chooses.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import polars as pl

from genrep_dist.config import load_experiment
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.runner.progress import NoProgress, ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.units import Retraining
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs
from genrep_dist.workflow.requests import retrain_requests
from genrep_dist.workflow.retrain import retrain_units
from genrep_dist.workflow.stages import STAGES
from tests.benchmarks import measured_on, publish, spread, table

SIZES = (1, 4, 16)


def asked_models(prepared: PreparedExperiment) -> list[Retraining]:
    """All retrainings of the experiment, after the stages that determine them."""
    workers = Workers(prepared.plan.experiment, serial=True)
    runner = StageRunner(prepared, ProgressCounter(NoProgress()), workers)
    for stage in STAGES:
        runner.run_stage(stage)
    requests = retrain_requests(prepared.plan, prepared.store, prepared.train.ids.numpy(), prepared.test.ids.numpy())
    known = prepared.store.ledger(prepared.plan.keys.training).keys()
    return [retraining for key, retraining in requests.retrainings.items() if key not in known]


def models_per_task(prepared: PreparedExperiment, models: list[Retraining], executor: RayExecutor) -> int:
    """The size that a run of the whole demo would choose, which has many more models."""
    runner = StageRunner(prepared, ProgressCounter(NoProgress()), Workers(prepared.plan.experiment, executor=executor))
    return runner._models_per_task(models[0].policy, 50 * len(models))


def measure(prepared: PreparedExperiment, models: list[Retraining], size: int, executor: RayExecutor) -> tuple[float, float, int, float]:
    """Total seconds, seconds of training in them, number of tasks, and pack size."""
    units = list(retrain_units(models, size))
    trained, pack = 0.0, 0.0
    began = time.perf_counter()
    for outcome in executor.run(prepared.job, units):
        if outcome.error is not None:
            raise outcome.error
        trained += outcome.statistics["training_seconds"]
        pack = max(pack, outcome.statistics["pack_size"])
    return time.perf_counter() - began, trained, len(units), pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each size")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/retraining_tasks.md")
    asked = parser.parse_args()
    where = measured_on("torch", "ray")
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as folder:
        prepared = prepare(load_experiment("demo", ["seeds=2"]), Store(folder))
        publish_inputs(prepared)
        models = asked_models(prepared)
        executor = RayExecutor(ResourcesSection.model_validate({"retries": 0, "workers": 1}))
        try:
            measure(prepared, models[:40], 40, executor)
            chosen = models_per_task(prepared, models, executor)
            sizes = [*(size for size in SIZES if size < chosen), chosen]
            found: dict[int, list[tuple[float, float, int, float]]] = {size: [] for size in sizes}
            for _ in range(asked.rounds):
                for size in sizes:
                    found[size].append(measure(prepared, models[:40] if size == 1 else models, size, executor))
        finally:
            executor.close()
        bits = prepared.store.ledger(prepared.plan.keys.training).scan().group_by("key").agg(pl.col("outputs").n_unique()).collect()
        assert bits["outputs"].max() == 1
    rows = [
        (
            f"{size}" + (" (chosen)" if size == chosen else ""),
            f"{runs[0][3]:.0f}",
            spread([1e3 * wall / tasks for wall, _, tasks, _ in runs], "{:.0f}"),
            spread([1e3 * (wall - trained) / tasks for wall, trained, tasks, _ in runs], "{:.0f}"),
            spread([100 * (wall - trained) / wall for wall, trained, _, _ in runs], "{:.1f}"),
        )
        for size, runs in found.items()
    ]
    sections = [
        " ".join(str(__doc__).split()),
        where,
        f"{len(models)} models (40 with one model per task). Medians of {asked.rounds} rounds, smallest and largest in parentheses. Every "
        "model has the same outputs, bit for bit, in all tasks.",
        table(("models per task", "pack size", "ms per task", "ms of overhead", "overhead, %"), rows),
    ]
    publish("retraining_tasks", "The cost of scheduling retrainings", sections, write=asked.write)


if __name__ == "__main__":
    main()
