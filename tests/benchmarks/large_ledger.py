"""What a run of 100,000 retrainings costs its driver when all of them are in the ledger: time, memory, and files in the store.

The stores are made for this benchmark: 50 seeds, 20 test points and two methods on a small problem, with trained originals, scores, and a
ledger with made-up outputs of every requested model for 200 test samples. They differ in the number of removals for each point. A task
wrote 25 rows, and the run that wrote them was killed before it compacted anything. "Plan" is `genrep plan --no-probe`. "Missing" finds
the models that the scores ask for and compares them with the ledger, as a restart with missing models does. "Restart" is the command
after a kill before anything was published: it reads, evaluates and publishes, without MLflow; if there are 1,000 parts or more, it
compacts them first. "Finished" is the same command once more. Each is a process of its own. CPU seconds, which depend least on other work
on the machine; without the start of Python and the imports that all commands make, with those that only this one makes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import genrep_dist as gr
from genrep_dist.cli.status import status_record
from genrep_dist.evaluation.metrics.base import REQUEST_NULLABLE
from genrep_dist.results import open_run
from genrep_dist.runner import track as runner_track
from genrep_dist.runner.dry_run import dry_run
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.store.tables import put_frame
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.prepare import PreparedExperiment, prepare, publish_inputs
from genrep_dist.workflow.record import write_record
from genrep_dist.workflow.requests import requests_path, retrain_requests
from genrep_dist.workflow.retrain import original_row
from genrep_dist.workflow.stages import STAGES, artifacts_of
from tests.benchmarks import measured_on, peak_bytes, publish, table
from tests.experiments import ROOT, experiment
from tests.publication import no_tracking

SEEDS, POINTS, NUM_TEST, PER_TASK = 50, 20, 200, 25
REMOVALS = (13, 26, 52)
OPERATIONS = ("plan", "status", "missing", "restart", "finished")


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
    found = retrain_requests(prepared.plan, store, prepared.train.ids.numpy(), prepared.test.ids.numpy())
    put_frame(store.objects, requests_path(prepared.plan), found.table, table="requests", nullable=REQUEST_NULLABLE, sealed=True)
    for one in found.retrainings.values():
        outputs = draw.normal(size=(NUM_TEST, 1)).astype(np.float32).astype(float)
        rows.append(LedgerRow(one.key, one.seed, one.policy, one.replicate, one.removed, outputs, 0.1))
    for start in range(0, len(rows), PER_TASK):
        store.ledger(keys.training).write(rows[start : start + PER_TASK])
    return prepared


def operation(name: str, folder: str) -> Callable[[], object]:
    """What is measured, on the store in ``folder``."""
    question = open_run(folder, "toy").plan.experiment
    if name in ("restart", "finished"):
        runner_track.track = no_tracking
        return lambda: gr.run(question, folder, serial=True, search_path=[str(ROOT)])
    prepared = prepare(question, Store(folder), [str(ROOT)])
    if name == "plan":
        return lambda: dry_run(prepared, probe=False)
    if name == "status":
        return lambda: status_record(folder, "toy")

    def missing() -> None:
        found = retrain_requests(prepared.plan, prepared.store, prepared.train.ids.numpy(), prepared.test.ids.numpy())
        assert found.retrainings.keys() <= prepared.store.ledger(prepared.plan.keys.training).keys()

    return missing


def measure_here(name: str, folder: str) -> None:
    """Print the CPU seconds of one operation and the peak memory of this process."""
    work = operation(name, folder)
    began = time.process_time()
    work()
    seconds = time.process_time() - began
    sys.stdout.write(json.dumps([seconds, peak_bytes() / 2**20]) + "\n")


def measure(folder: Path) -> list[tuple[float, float]]:
    """(seconds, MiB) of each operation, in turn."""
    command = [sys.executable, "-m", "tests.benchmarks.large_ledger", "--folder", str(folder), "--measure"]
    outputs = [subprocess.run([*command, name], check=True, capture_output=True, text=True, cwd=ROOT).stdout for name in OPERATIONS]
    return [tuple(json.loads(output.splitlines()[-1])) for output in outputs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--removals", type=int, nargs="+", default=REMOVALS, help="removals for each point")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/large_ledger.md")
    parser.add_argument("--measure", choices=OPERATIONS, help="measure one operation on the store in --folder")
    parser.add_argument("--folder", help="a store of this benchmark")
    asked = parser.parse_args()
    if asked.measure:
        measure_here(asked.measure, asked.folder)
        return
    where = measured_on("polars", "pyarrow")
    seconds: list[tuple[str, ...]] = []
    memory: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-") as temporary:
        for removals in asked.removals:
            folder = Path(temporary) / str(removals)
            prepared = make_store(folder, removals)
            compacted = Path(temporary) / f"{removals}-compacted"
            shutil.copytree(folder, compacted)
            began = time.process_time()
            done = Store(str(compacted)).ledger(prepared.plan.keys.training).compact()
            took = time.process_time() - began
            for place, parts in ((folder, done.parts_before), (compacted, done.parts_after)):
                files = sum(path.is_file() for path in place.rglob("*"))
                found = measure(place)
                compaction = f"{took:.1f}" if place is compacted else ""
                size = f"{done.rows:,}", f"{parts:,}"
                seconds.append((*size, *(f"{one:.2f}" for one, _ in found), compaction))
                memory.append((*size, *(f"{mebibytes:,.0f}" for _, mebibytes in found), f"{files:,}"))
            shutil.rmtree(folder)
            shutil.rmtree(compacted)
    sections = [
        " ".join(str(__doc__).split()),
        where,
        "CPU seconds:",
        table(("rows", "parts", *OPERATIONS, "compaction"), seconds),
        "Peak memory of the process in MiB, most of which are libraries, and files in the store:",
        table(("rows", "parts", *OPERATIONS, "files"), memory),
    ]
    publish("large_ledger", "A large ledger", sections, write=asked.write)


if __name__ == "__main__":
    main()
