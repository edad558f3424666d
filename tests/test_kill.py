"""SIGKILL to the driver and to workers, twenty times in one experiment, wherever they happen to be. The result is the undisturbed run's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

METHODS = ["ntk-final/surrogate", "influence-function", "representer-point", "tracincp", "random"]
SESSIONS = ("serial",) * 6 + ("ray",) + ("serial",) * 4 + ("ray",) + ("serial",) * 2
"""Runs of the experiment, one after the other. A serial one ends with its driver's death; one through Ray loses three workers before."""
WORKERS_KILLED = 3
SLOTS = 2


def start(file: Path, store: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.driver", "run", str(file), "--store", str(store), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()


def make(folder: Path) -> Path:
    folder.mkdir()
    return experiment_file(
        folder / "toy.yaml",
        "tests.toys:Counting",
        {"folder": str(folder), "epochs": 40},
        methods=METHODS,
        resources={"task_seconds": 0.05, "memory_budget": "32KiB", "workers": SLOTS, "retries": 5},
    )


def progress_marks(store: Path) -> int:
    """How many files the store holds: it grows with every unit."""
    return sum(1 for path in store.rglob("*") if path.is_file()) if store.exists() else 0


def wait_for(store: Path, target: int, process: subprocess.Popen[bytes]) -> bool:
    """Until the store has grown so far; False when the run ended before."""
    while process.poll() is None:
        if progress_marks(store) >= target:
            return True
        time.sleep(0.01)
    return False


def kill_a_worker(process: subprocess.Popen[bytes], chance: random.Random) -> bool:
    """SIGKILL to a process of this driver's Ray that has a unit in hand; False when the run ended before there was one."""
    while process.poll() is None:
        busy = []
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                title = " ".join(child.cmdline())
            except psutil.Error:
                continue
            # Ray writes into a worker's title what it is at: a task's function, or an actor's method.
            if title.startswith(("ray::run_unit", "ray::Worker.run")):
                busy.append(child)
        if busy:
            chance.choice(busy).kill()
            return True
        time.sleep(0.005)
    return False


@pytest.mark.ray
def test_twenty_kills_change_nothing(tmp_path: Path, record_property: Any) -> None:
    whole = make(tmp_path / "whole")
    finish(start(whole, tmp_path / "whole" / "store", "--serial"))
    files = progress_marks(tmp_path / "whole" / "store")

    hurt = make(tmp_path / "hurt")
    store = tmp_path / "hurt" / "store"
    chance = random.Random(0)
    moments = sum(1 if session == "serial" else WORKERS_KILLED + 1 for session in SESSIONS)
    assert moments == 20
    # Kill when the store has grown to random sizes, spread over the whole run, so that every stage is hit.
    targets = iter(sorted(chance.sample(range(8, files - 20), moments)))
    serial_drivers = ray_drivers = workers = 0
    for session in SESSIONS:
        process = start(hurt, store, *(["--serial"] if session == "serial" else []))
        for _ in range(WORKERS_KILLED if session == "ray" else 0):
            workers += wait_for(store, next(targets), process) and kill_a_worker(process, chance)
        if wait_for(store, next(targets), process):
            os.killpg(process.pid, signal.SIGKILL)
            serial_drivers, ray_drivers = serial_drivers + (session == "serial"), ray_drivers + (session == "ray")
        else:
            assert process.returncode == 0, process.stderr and process.stderr.read().decode()
        process.communicate()
    assert (serial_drivers, ray_drivers, workers) == (12, 2, 6)
    finish(start(hurt, store, "--serial"))

    results = [path.name for path in (tmp_path / "whole/store/results/toy").glob("*.parquet") if path.name != "costs.parquet"]
    assert {"deletion.parquet", "summary.parquet"} <= set(results)
    for name in (*results, "table.md"):
        assert (store / "results/toy" / name).read_bytes() == (tmp_path / "whole/store/results/toy" / name).read_bytes(), name
    undisturbed, done = trainings(tmp_path / "whole"), trainings(tmp_path / "hurt")
    assert undisturbed <= done
    record_property("tried", moments)
    record_property("trainings_repeated", done - undisturbed)
    # A kill costs at most what was in flight: a task's models, and with a driver those of all slots. A task writes one part.
    a_task = max(pq.read_metadata(part).num_rows for part in tmp_path.glob("*/store/ledger/*/*.parquet"))
    assert done <= undisturbed + a_task * (serial_drivers + workers + SLOTS * ray_drivers)
