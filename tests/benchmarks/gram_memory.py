"""Memory of the driver and the workers while a gram ten times larger than the memory budget is computed and used out of core.

For each size, a new driver process runs a whole experiment (training, features, gram, surrogate, attributions, evaluation, report) through
Ray with two workers. The model is linear with 64 parameters, so the gram is much larger than all other data. A thread of the driver reads
the peak memory of the driver and of each worker (VmHWM of Linux), and resets it at the start of each stage. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from genrep_dist.problems.protocol import Dataset, Recipe
from tests.benchmarks import measured_on, publish, table

ROOT = Path(__file__).parents[2]
BUDGET_BYTES = 2**30
ROWS, SMALL_ROWS = 52_000, 13_000
"""4 x 52,000^2 bytes are ten budgets. The small gram is within the budget: a Python process alone takes half of it."""
FREE_BYTES = 20 * 2**30
"""Disk space that must stay free."""
FEATURES = 63
"""Inputs of the linear model; its gradient has one more number, for the bias."""

Stages = dict[str, dict[str, Any]]


class Wide:
    """Many rows, few features: two noisy classes and a linear model of 64 parameters. The gram is much larger than all other data."""

    loss = "logistic"
    recipe = Recipe(epochs=1, batch_size=256, learning_rate=0.1)

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def model(self) -> nn.Module:
        return nn.Linear(FEATURES, 1)

    def train_data(self) -> Dataset:
        return self._data(0, self.rows)

    def test_data(self) -> Dataset:
        return self._data(1, 16)

    def _data(self, seed: int, rows: int) -> Dataset:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(rows, FEATURES, generator=generator)
        noise = torch.randn(rows, generator=generator)
        return Dataset(inputs, (inputs[:, 0] + noise > 0).float(), torch.arange(rows))


class Watch:
    """A progress display that records, for each stage, its seconds and the peak memory of the driver and of every worker."""

    def __init__(self) -> None:
        self.stages: Stages = {}
        self._name = "start"
        self._workers: dict[int, psutil.Process] = {}
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.stage("start", 0, 0)
        threading.Thread(target=self._follow, daemon=True).start()

    def stage(self, name: str, total: int, done: int) -> None:
        with self._lock:
            self._look()
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}\n")
            self._name, self._began = name, time.monotonic()
            self.stages[name] = {"units": total, "seconds": 0.0, "driver": 0, "workers": {}}
            for process in (os.getpid(), *self._workers):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    Path(f"/proc/{process}/clear_refs").write_text("5")
            self._look()

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def finish(self) -> Stages:
        with self._lock:
            self._look()
            return self.stages

    def _follow(self) -> None:
        ticks = 0
        while True:
            with self._lock:
                if ticks % 10 == 0:
                    children = psutil.Process().children(recursive=True)
                    self._workers = {child.pid: child for child in children if is_worker(child)}
                self._look()
            ticks += 1
            time.sleep(0.02)

    def _look(self) -> None:
        if self._name not in self.stages:
            return
        stage = self.stages[self._name]
        stage["seconds"] = time.monotonic() - self._began
        stage["driver"] = high_water_bytes(os.getpid())
        for process in self._workers:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                stage["workers"][process] = high_water_bytes(process)


def is_worker(process: psutil.Process) -> bool:
    """Whether a process runs units of work, by the title that Ray gives it. Ray's agents have such titles too, but run no units."""
    try:
        title = process.cmdline()[0]
        return title.startswith("ray::") and "Agent" not in title
    except (psutil.Error, IndexError):
        return False


def high_water_bytes(process: int) -> int:
    """The peak memory of a process since the peak was last reset."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {process} has ended")


def drive(rows: int, store: str) -> Stages:
    """The measured driver: runs the whole experiment, from an empty store to its report."""
    import genrep_dist as gr

    fields = {
        "name": f"gram-{rows}",
        "problem": {"name": "tests.benchmarks.gram_memory:Wide", "options": {"rows": rows}},
        "seeds": 1,
        "test_points": 1,
        "methods": ["ntk-final/surrogate"],
        # No sample is removed: the gram is measured, not retraining. A loose tolerance needs fewer products with the gram.
        "deletion": {"fractions": [0.0]},
        "surrogate": {"lambda": 0.1, "tolerance": 1e-3},
        "resources": {"memory_budget": BUDGET_BYTES, "workers": 2},
    }
    watch = Watch()
    gr.run(gr.Experiment.model_validate(fields), store=store, progress=watch, search_path=[str(ROOT)])
    return watch.finish()


def hold(rows: int) -> int:
    """For comparison: peak bytes of a process that computes the same gram as one tensor."""
    features = torch.randn(rows, FEATURES + 1)
    gram = features @ features.T
    assert gram.shape == (rows, rows)
    return high_water_bytes(os.getpid())


def in_a_fresh_process(*arguments: str) -> Any:
    """Run this module in a new process with ``arguments``; return the JSON value of its last line."""
    command = [sys.executable, "-m", "tests.benchmarks.gram_memory", *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(rows: int, folder: str | None) -> Stages:
    """All stages of a run in a store that is deleted afterwards. SystemExit if the disk has too little space."""
    with tempfile.TemporaryDirectory(prefix="genrep-benchmark-", dir=folder) as store:
        needed, free = 3 * rows * rows, shutil.disk_usage(store).free
        if free - needed < FREE_BYTES:
            raise SystemExit(f"{store}: {free:,} bytes are free, {needed:,} are needed, {FREE_BYTES:,} must stay free (--folder)")
        stages: Stages = in_a_fresh_process("--drive", str(rows), "--folder", store)
        return stages


def driver_bytes(stages: Stages) -> int:
    return max(int(stage["driver"]) for stage in stages.values())


def worker_bytes(stages: Stages) -> int:
    return max(max(stage["workers"].values(), default=0) for stage in stages.values())


def mebibytes(*counts: int) -> str:
    return " to ".join(f"{count / 2**20:,.0f}" for count in counts)


def sizes_table(runs: Mapping[int, Stages]) -> str:
    """Peak memory in MiB for each number of rows, and that of the gram as one tensor."""
    rows = []
    for n, stages in runs.items():
        both = sorted(stages["kernels"]["workers"].values())[-2:]
        # As one tensor the largest gram does not fit most machines: its own bytes are shown instead.
        dense = f"{mebibytes(4 * n * n)}, not measured" if n == ROWS else mebibytes(in_a_fresh_process("--hold", str(n)))
        peak = max(driver_bytes(stages), worker_bytes(stages))
        rows.append(
            (
                f"{n:,}",
                mebibytes(4 * n * n),
                f"{4 * n * n / BUDGET_BYTES:.2f}",
                mebibytes(driver_bytes(stages)),
                mebibytes(*both),
                mebibytes(max(stages["importances"]["workers"].values())),
                f"{peak / BUDGET_BYTES:.2f}",
                dense,
            )
        )
    columns = ("rows", "gram", "gram / budget", "driver", "two workers, tiles", "worker, surrogate", "peak / budget", "as one tensor")
    return table(columns, rows)


def stages_table(stages: Stages) -> str:
    rows = [
        (
            name,
            f"{stage['units']:,}",
            f"{stage['seconds']:.0f}",
            mebibytes(stage["driver"]),
            mebibytes(max(stage["workers"].values(), default=0)),
            f"{max([stage['driver'], *stage['workers'].values()]) / BUDGET_BYTES:.2f}",
        )
        for name, stage in stages.items()
    ]
    return table(("stage", "units", "seconds", "driver", "largest worker", "peak / budget"), rows)


def verdict(runs: Mapping[int, Stages]) -> str:
    peaks = {n: max(driver_bytes(stages), worker_bytes(stages)) for n, stages in runs.items()}
    small, large = min(runs), max(runs)
    where = "within" if max(peaks.values()) < BUDGET_BYTES else "**above**"
    growth = (
        f" From the fewest to the most rows, the rows grow {large / small:.0f} times, the gram {(large / small) ** 2:.0f} times, and the "
        f"largest process {peaks[large] / peaks[small]:.2f} times."
    )
    return (
        f"The budget is {mebibytes(BUDGET_BYTES)} MiB; the largest gram is {4 * large**2 / BUDGET_BYTES:.1f} times that. The largest "
        f"process, including interpreter and libraries, took {max(peaks.values()) / BUDGET_BYTES:.2f} of the budget: {where} it."
    ) + (growth if large > small else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one run with a quarter of the rows, whose gram is smaller than the budget")
    parser.add_argument("--folder", help="folder of the temporary store; default: the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/gram_memory.md")
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        sys.stdout.write(f"\n{json.dumps(drive(asked.drive, asked.folder))}\n")
        return
    if asked.hold:
        sys.stdout.write(f"\n{json.dumps(hold(asked.hold))}\n")
        return
    # SIGTERM must still delete the store, which has gigabytes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = (SMALL_ROWS,) if asked.small else (ROWS // 4, ROWS // 2, ROWS)
    where = measured_on("torch", "ray", "zarr", "obstore")
    runs = {rows: measure(rows, asked.folder) for rows in sizes}
    sections = [
        " ".join(str(__doc__).split()),
        where,
        verdict(runs),
        "Peak memory in MiB:",
        sizes_table(runs),
        f"Peak memory in MiB by stage, with {sizes[-1]:,} rows. 'start' includes imports, the problem's data and the plan; 'retrain' "
        "includes evaluation, report and publication to MLflow. A worker solves the surrogate from the stored tiles. It holds the gram in "
        "memory if the gram fits half the budget:",
        stages_table(runs[sizes[-1]]),
    ]
    publish("gram_memory", "Memory with a gram larger than the budget", sections, write=asked.write)


if __name__ == "__main__":
    main()
