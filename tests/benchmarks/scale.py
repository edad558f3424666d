"""Large training sets: memory and time of solves on wide features, and of a whole run that keeps the strongest scores.

Solves: the importances `surrogate` and the kernel `influence`, by their primal systems, on features of 4,096 numbers (the last layer of a
network of that width, with its bias) for 20 test points. Features are computed by the network, stored where a solve passes over them more
than once, and never all held. Each case is a process of its own, on one thread as a worker is; its peak is that of the whole process, with
the libraries and the training of the original model. The exponent is the slope of log processor seconds against log rows by least squares.
Goal: 2 GiB at 100,000 rows.

Whole runs: 100 test points of a network of 577 parameters are explained by three methods and random scores with `attributions: {top:
100}`, from the data to the published results, by Ray with one worker. "driver" is the process that calls `genrep_dist.run`, "worker" the
largest worker process of Ray. Both are private memory (USS), sampled four times a second; pages of the shared file of samples that one
process alone has read are among them. "without files" is anonymous memory, which is what the process itself has made, from the first unit
of work on: when the driver has loaded and published the data. "all" is the largest sum over driver and workers in which a shared page
counts once (PSS), in the same time. Goal: what grows with the rows is stated, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.config import Experiment
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.training.threads import one_thread
from genrep_dist.workflow.prepare import prepare, publish_inputs
from tests.benchmarks import measured_on, peak_bytes, publish, table
from tests.experiments import ROOT

WIDTH, INPUTS = 4096, 16
SOLVE_ROWS, SMALL_ROWS = (25_000, 50_000, 100_000), 2_000
RUN_ROWS, POINTS, TOP = (100_000, 1_000_000), 100, 100
SOLVED = {"surrogate": "last-layer-final/surrogate", "influence": "influence-function"}
RUN_METHODS = ("ntk-final/tracking", "ntk-final/target", "last-layer-final/target", "random")


class Wide:
    """A logistic regression on ``width`` - 1 random features of standard normal inputs, with labels of a noisy linear rule."""

    loss = "logistic"

    def __init__(self, rows: int, width: int = WIDTH) -> None:
        self.rows, self.width = rows, width
        self.recipe = Recipe(epochs=1, batch_size=1000, learning_rate=0.01)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(INPUTS, self.width - 1), nn.Tanh(), nn.Linear(self.width - 1, 1))

    def train_data(self) -> Dataset:
        return self._data(0, self.rows)

    def test_data(self) -> Dataset:
        return self._data(1, 1000)

    def _data(self, seed: int, rows: int) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(rows, INPUTS, generator=generator)
        noise = torch.randn(rows, generator=generator)
        return Dataset(inputs, (inputs[:, 0] - inputs[:, 1] + noise > 0).float(), torch.arange(rows) + seed * 10**8)


def solve_experiment(what: str, rows: int, system: str) -> Experiment:
    fields = {
        "name": "scale",
        "problem": {"name": "tests.benchmarks.scale:Wide", "options": {"rows": rows}},
        "seeds": 1,
        "test_points": 20,
        "methods": [SOLVED[what], "random"],
        "surrogate": {"lam": 0.01, "system": system},
        "influence": {"damping": 0.01, "curvature": "last-layer", "system": system},
        "attributions": {"top": TOP},
        "deletion": {"counts": [0]},
        "resources": {"memory_budget": "512MiB" if system == "primal" else "2GiB"},
    }
    return Experiment.model_validate(fields)


def solve(what: str, rows: int, system: str, folder: str) -> dict[str, Any]:
    """Processor seconds and peak memory of the stages of one experiment, in this process; the scores where ``rows`` are few."""
    with one_thread():
        prepared = prepare(solve_experiment(what, rows, system), Store(folder), [str(ROOT)])
        publish_inputs(prepared)
        before, began, clock = peak_bytes(), time.process_time(), time.perf_counter()
        StageRunner(prepared, ProgressCounter(), Workers(prepared.plan.experiment, serial=True)).run()
        seconds, elapsed = time.process_time() - began, time.perf_counter() - clock
    plan = prepared.plan
    method = plan.experiment.method(SOLVED[what])
    artifact = prepared.store.artifact("attribution", plan.keys.attribution(0, method))
    kind = "kernel" if what == "influence" else "surrogate"
    key = plan.keys.kernel(0, "influence", 1) if what == "influence" else plan.keys.solved("surrogate", 0, "last-layer", 1)
    manifest = prepared.store.artifact(kind, key).manifest()
    found = {"seconds": seconds, "elapsed": elapsed, "before": before, "peak": peak_bytes(), "unit_seconds": manifest["seconds"]}
    found |= {"certificate": manifest["certificate"], "plan": max(stage.peak_bytes for stage in plan.stages)}
    if rows == SMALL_ROWS:
        found["scores"] = {sign: artifact.read(f"scores_{sign}").tolist() for sign in ("negative", "positive")}
        found["ids"] = {sign: artifact.read(f"order_{sign}").tolist() for sign in ("negative", "positive")}
    return found


class Watch:
    """Samples memory of this process and of Ray's workers, until it is stopped."""

    def __init__(self) -> None:
        self.driver, self.worker, self.processor_seconds = 0.0, 0.0, 0.0
        self.driver_made, self.worker_made, self.together = 0.0, 0.0, 0.0
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self._spent: dict[int, float] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()
        times = psutil.Process().cpu_times()
        self.processor_seconds = sum(self._spent.values()) + times.user + times.system

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.driver = max(self.driver, psutil.Process().memory_full_info().uss)
            found = []
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.name().startswith("ray::") and "IDLE" not in process.name():
                        self.worker = max(self.worker, process.memory_full_info().uss)
                        found.append(rollup(process.pid))
                        times = process.cpu_times()
                        self._spent[process.pid] = times.user + times.system
                except (psutil.Error, OSError):
                    continue
            if found or self.worker_made:
                own = rollup(os.getpid())
                self.driver_made = max(self.driver_made, own["Anonymous"])
                self.worker_made = max(self.worker_made, *(one["Anonymous"] for one in found), 0.0)
                self.together = max(self.together, own["Pss"] + sum(one["Pss"] for one in found))


def rollup(pid: int) -> dict[str, float]:
    """Bytes of a process by kind, of /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: 1024.0 * int(line.split()[1]) for line in lines}


def whole_run(rows: int, folder: str) -> dict[str, Any]:
    """A run from the data to its results. Seconds by stage, of one worker, are those that the store has recorded."""
    fields = {
        "name": "million",
        "problem": {"name": "tests.benchmarks.scale:Wide", "options": {"rows": rows, "width": 33}},
        "seeds": 1,
        "test_points": POINTS,
        "methods": list(RUN_METHODS),
        "attributions": {"top": TOP},
        "deletion": {"counts": [0]},
        "resources": {"memory_budget": "256MiB", "workers": 1, "device": "cpu"},
    }
    began = time.perf_counter()
    with Watch() as watch:
        run = gr.run(Experiment.model_validate(fields), store=folder, serial=False, search_path=[str(ROOT)])
    elapsed = time.perf_counter() - began
    plan = run.plan
    ids, scores = run.strongest(RUN_METHODS[0], 0)
    assert ids.shape == (POINTS, TOP)
    assert np.isfinite(scores).all()
    stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {
        "elapsed": elapsed,
        "processor": watch.processor_seconds,
        "driver": watch.driver,
        "worker": watch.worker,
        "driver_made": watch.driver_made,
        "worker_made": watch.worker_made,
        "together": watch.together,
        "stored": stored,
        "planned": {stage.name: stage.peak_bytes for stage in plan.stages},
        "written": plan.bytes_written,
    }


def measured(case: Sequence[Any], known: dict[str, Any], results: Path | None) -> Any:
    """The result of one case in a process of its own, or as an earlier start has found it."""
    name = json.dumps(case)
    if name not in known:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--case", name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT, env=environment)
        known[name] = json.loads(done.stdout.splitlines()[-1])
        if results is not None:
            results.write_text(json.dumps(known))
    return known[name]


def one_case(case: Sequence[Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return whole_run(case[1], folder) if case[0] == "run" else solve(case[0], case[1], case[2], folder)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    x, y = np.log(sizes), np.log(seconds)
    return float(np.polyfit(x, y, 1)[0])


def mebibytes(number: float) -> str:
    return f"{number / 2**20:,.0f}"


def difference(found: Any, expected: Any) -> str:
    """The largest difference of the strongest scores, and how many places hold another sample."""
    signs = ("negative", "positive")
    scores = [np.array([one["scores"][sign] for sign in signs]) for one in (found, expected)]
    ids = [np.array([one["ids"][sign] for sign in signs]) for one in (found, expected)]
    apart = np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max()
    return f"{apart:.1e} of the largest score; {(ids[0] != ids[1]).sum():,} of {ids[0].size:,} places hold another sample"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/scale.md")
    parser.add_argument("--results", type=Path, help="a file of finished cases, which are not measured again")
    parser.add_argument("--case", help="one case, as JSON, in this process")
    options = parser.parse_args()
    if options.case:
        sys.stdout.write("\n" + json.dumps(one_case(json.loads(options.case))))
        return
    results = options.results
    known: dict[str, Any] = json.loads(results.read_text()) if results is not None and results.exists() else {}
    where = measured_on("torch", "ray")
    small = [
        f"{what}, {SMALL_ROWS:,} rows, primal system against the gram: largest difference "
        f"{difference(*(measured([what, SMALL_ROWS, system], known, results) for system in ('primal', 'dual')))}."
        for what in SOLVED
    ]
    rows, exponents = [], []
    for what in SOLVED:
        found = [measured([what, size, "primal"], known, results) for size in SOLVE_ROWS]
        rows += [solve_row(what, size, one) for size, one in zip(SOLVE_ROWS, found, strict=True)]
        exponents.append(f"{what} {exponent(SOLVE_ROWS, [one['seconds'] for one in found]):.2f}")
    columns = ("solve", "rows", "processor seconds", "elapsed", "of the solve", "peak, MiB (before)", "residual", "products")
    runs = [(size, measured(["run", size], known, results)) for size in RUN_ROWS]
    run_columns = (
        "rows",
        "elapsed, s",
        "processor seconds",
        "driver, MiB (without files)",
        "worker, MiB (without files)",
        "all, MiB",
        "store, MiB",
        "all scores would be, MiB",
    )
    sections = [" ".join(part.split()) for part in str(__doc__).split("\n\n")]
    sections += [where, table(columns, rows), f"Exponents of processor seconds: {', '.join(exponents)}.", " ".join(small)]
    sections += [table(run_columns, [run_row(*one) for one in runs]), growth_text(*runs)]
    publish("scale", "Large training sets", sections, write=options.write)


def solve_row(what: str, rows: int, found: Any) -> tuple[str, ...]:
    certificate = found["certificate"]
    return (
        what,
        f"{rows:,}",
        f"{found['seconds']:,.0f}",
        f"{found['elapsed']:,.0f}",
        f"{found['unit_seconds']:,.0f}",
        f"{mebibytes(found['peak'])} ({mebibytes(found['before'])})",
        f"{certificate['residual']:.1e}",
        f"{certificate.get('matvecs', '-')}",
    )


def run_row(rows: int, found: Any) -> tuple[str, ...]:
    whole = 3 * 8 * rows * POINTS * len(RUN_METHODS)
    memory = (f"{mebibytes(found[who])} ({mebibytes(found[f'{who}_made'])})" for who in ("driver", "worker"))
    numbers = (found["together"], found["stored"], whole)
    return (f"{rows:,}", f"{found['elapsed']:,.0f}", f"{found['processor']:,.0f}", *memory, *map(mebibytes, numbers))


def growth_text(first: tuple[int, Any], last: tuple[int, Any]) -> str:
    more = last[0] - first[0]
    names = {"driver": "driver", "driver_made": "driver without files", "worker": "worker", "worker_made": "worker without files"}
    names["together"] = "all"
    parts = [f"{text} {(last[1][who] - first[1][who]) / more:,.0f}" for who, text in names.items()]
    row = 4 * (INPUTS + 1) + 8
    return (
        f"Bytes for each further row: {', '.join(parts)}. A row of the data takes {row} bytes (inputs, label, id); each array of "
        f"importances or outputs of the training set takes 4 or 8. Scores of all samples would take {8 * POINTS} bytes a row and method, "
        "and their orders twice that."
    )


if __name__ == "__main__":
    main()
