"""What a run of 100,000 retrainings costs its driver when all of them are in the ledger: `genrep status`, and the restart to results.

The stores are made for this benchmark: 50 seeds, 20 test points and two methods on a small problem, with trained originals, scores, and a
ledger with made-up outputs of every requested model for 200 test samples. They differ in the number of removals for each point. A task
wrote 25 rows. "Requests" finds the models that the scores ask for, "missing" compares them with the ledger, "restart" is the command
after a kill before anything was published: it reads, evaluates and publishes, without MLflow. Seconds of one process, after its imports.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

import genrep_dist as gr
from genrep_dist.cli.status import status_record
from genrep_dist.results import open_run
from genrep_dist.runner import track as runner_track
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.units import Retraining
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs
from genrep_dist.workflow.record import write_record
from genrep_dist.workflow.requests import retrain_requests
from genrep_dist.workflow.retrain import original_row
from genrep_dist.workflow.stages import STAGES, artifacts_of
from tests.benchmarks import measured_on, publish, table
from tests.experiments import ROOT, experiment
from tests.publication import no_tracking

SEEDS, POINTS, NUM_TEST, PER_TASK = 50, 20, 200, 25
REMOVALS = (10, 25, 50)


def make_store(folder: Path, removals: int) -> PreparedExperiment:
    """Everything but the results."""
    question = experiment(
        options={"train_size": 400, "test_size": NUM_TEST, "epochs": 1},
        methods=["random", "last-layer-final/target"],
        seeds=SEEDS,
        test_points=POINTS,
        deletion={"counts": list(range(removals + 1)), "signs": ["negative"]},
    )
    store = Store(str(folder))
    prepared = prepare(question, store, [str(ROOT)])
    write_record(prepared)
    publish_inputs(prepared)
    for stage in STAGES:
        for artifact in artifacts_of(prepared.plan, stage):
            artifact.declare(store)
            for unit in artifact.missing_units(store):
                execute(prepared.job, unit)
            artifact.commit(store)
    draw, keys = np.random.default_rng(0), prepared.plan.keys
    rows = [original_row(seed, keys, store) for seed in question.seeds]
    for one in requests(prepared).values():
        outputs = draw.normal(size=(NUM_TEST, 1)).astype(np.float32).astype(float)
        rows.append(LedgerRow(one.key, one.seed, one.policy, one.replicate, one.removed, outputs, 0.1))
    for start in range(0, len(rows), PER_TASK):
        store.ledger(keys.training).write(rows[start : start + PER_TASK])
    return prepared


def requests(prepared: PreparedExperiment) -> dict[str, Retraining]:
    ids = prepared.train.ids.numpy(), prepared.test.ids.numpy()
    return retrain_requests(prepared.plan, prepared.store, *ids).retrainings


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(folder: Path, prepared: PreparedExperiment) -> list[str]:
    ledger = prepared.store.ledger(prepared.plan.keys.training)
    took = [
        seconds(lambda: status_record(str(folder), prepared.plan.experiment.name)),
        seconds(lambda: requests(prepared)),
        seconds(ledger.keys),
        seconds(lambda: gr.run(prepared.plan.experiment, str(folder), serial=True, search_path=[str(ROOT)])),
    ]
    again = seconds(lambda: gr.run(prepared.plan.experiment, str(folder), serial=True, search_path=[str(ROOT)]))
    return [f"{one:.1f}" for one in (*took, again)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--removals", type=int, nargs="+", default=REMOVALS, help="removals for each point")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/large_ledger.md")
    asked = parser.parse_args()
    runner_track.track = no_tracking
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as temporary:
        for removals in asked.removals:
            folder = Path(temporary) / str(removals)
            prepared = make_store(folder, removals)
            compacted = Path(temporary) / f"{removals}-compacted"
            shutil.copytree(folder, compacted)
            done = open_run(str(compacted), "toy").store.ledger(prepared.plan.keys.training).compact()
            for place, parts in ((folder, done.parts_before), (compacted, done.parts_after)):
                copy = prepare(prepared.plan.experiment, Store(str(place)), [str(ROOT)])
                lines.append((f"{done.rows:,}", f"{parts:,}", *measure(place, copy)))
    memory = psutil.Process().memory_info().rss / 2**20
    columns = ("rows", "parts", "status", "requests", "missing", "restart", "run when all is published")
    sections = [" ".join(str(__doc__).split()), measured_on("polars", "pyarrow"), table(columns, lines)]
    publish("large_ledger", "A large ledger", [*sections, f"Memory of the process at the end: {memory:,.0f} MiB."], write=asked.write)


if __name__ == "__main__":
    main()
