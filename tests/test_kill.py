"""SIGKILL to the driver and to workers, twenty times in one experiment, wherever they happen to be. The result is the undisturbed run's."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.experiments import experiment_fields, experiment_file
from tests.faults.forked import ForkedDriver
from tests.test_your_model import SNIPPETS
from tests.toys import trainings

METHODS = ["ntk-final/surrogate", "influence-function", "representer-point", "tracincp", "random"]
SESSIONS = ("serial",) * 6 + ("ray",) + ("serial",) * 4 + ("ray",) + ("serial",) * 2
"""Runs of the experiment, one after the other. A serial one ends with its driver's death; one through Ray loses three workers before."""
WORKERS_KILLED = 3
SLOTS = 2
RESOURCES = {"task_seconds": 0.05, "memory_budget": "32KiB", "workers": SLOTS, "retries": 5}


def start(file: Path, *options: str) -> ForkedDriver:
    return ForkedDriver("run", file, "--store", file.parent / "store", *options, output=file.parent / "output.txt")


def progress_marks(store: Path) -> int:
    """How many files the store holds: it grows with every unit."""
    return sum(1 for path in store.rglob("*") if path.is_file()) if store.exists() else 0


def wait_for(store: Path, target: int, driver: ForkedDriver) -> bool:
    """Until the store has grown so far; False when the run ended before."""
    while driver.runs():
        if progress_marks(store) >= target:
            return True
        time.sleep(0.01)
    return False


def kill_a_worker(driver: ForkedDriver, chance: random.Random) -> bool:
    """SIGKILL to a process of this driver's Ray that has a unit in hand; False when the run ended before there was one."""
    while driver.runs():
        busy = []
        for child in psutil.Process(driver.pid).children(recursive=True):
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


def kill_twenty_times(file: Path, whole: int, sessions: Sequence[str], chance: random.Random) -> tuple[int, int, int]:
    """Run ``file`` until it has been killed in each of the ``sessions``, and once more to its end.

    An undisturbed run's store has ``whole`` files. Kills come when the store has grown to random sizes, spread over the whole run, so that
    every stage is hit. Returns how many serial drivers, drivers on Ray and workers were killed.
    """
    store = file.parent / "store"
    moments = sum(1 if session == "serial" else WORKERS_KILLED + 1 for session in sessions)
    assert moments == 20
    targets = iter(sorted(chance.sample(range(8, whole - 20), moments)))
    serial_drivers = ray_drivers = workers = 0
    for session in sessions:
        begun = progress_marks(store)
        driver = start(file, f"--{session}")
        for _ in range(WORKERS_KILLED if session == "ray" else 0):
            workers += wait_for(store, next(targets), driver) and kill_a_worker(driver, chance)
        # At least one file later than where this driver began: a kill before any work would try nothing.
        if wait_for(store, max(next(targets), begun + 1), driver):
            driver.kill()
            serial_drivers, ray_drivers = serial_drivers + (session == "serial"), ray_drivers + (session == "ray")
        else:
            driver.finish()
    start(file, "--serial").finish()
    return serial_drivers, ray_drivers, workers


def assert_equal_results(found: Path, expected: Path) -> None:
    names = [path.name for path in expected.glob("*.parquet") if path.name != "costs.parquet"]
    assert {"deletion.parquet", "summary.parquet"} <= set(names)
    for name in (*names, "table.md"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


@pytest.mark.ray
def test_twenty_kills_change_nothing(tmp_path: Path, record_property: Any) -> None:
    files = {}
    for name in ("whole", "hurt"):
        (tmp_path / name).mkdir()
        options = {"folder": str(tmp_path / name), "epochs": 40}
        files[name] = experiment_file(tmp_path / name / "toy.yaml", "tests.toys:Counting", options, methods=METHODS, resources=RESOURCES)
    store = tmp_path / "whole/store"
    start(files["whole"], "--serial").finish()
    killed = kill_twenty_times(files["hurt"], progress_marks(store), SESSIONS, random.Random(0))
    assert killed == (12, 2, 6)

    assert_equal_results(tmp_path / "hurt/store/results/toy", store / "results/toy")
    undisturbed, done = trainings(tmp_path / "whole"), trainings(tmp_path / "hurt")
    assert undisturbed <= done
    record_property("tried", sum(killed))
    record_property("trainings_repeated", done - undisturbed)
    # A kill costs at most what was in flight: a task's models, and with a driver those of all slots. A task writes one part.
    a_task = max(pq.read_metadata(part).num_rows for part in tmp_path.glob("*/store/ledger/*/*.parquet"))
    serial_drivers, ray_drivers, workers = killed
    assert done <= undisturbed + a_task * (serial_drivers + workers + SLOTS * ray_drivers)


def test_twenty_kills_change_nothing_in_a_training_of_the_users_own(tmp_path: Path, record_property: Any) -> None:
    """The script of docs/your-model.md: AdamW, warm-up, clipping, augmentation, mixed precision."""
    files = {}
    for name in ("whole", "hurt"):
        (tmp_path / name).mkdir()
        for module, text in SNIPPETS.items():
            (tmp_path / name / module).write_text(text)
        fields = {"methods": ["ntk-final/target", "ntk-final/surrogate", "influence-function", "random"], "resources": RESOURCES}
        files[name] = tmp_path / name / "toy.yaml"
        files[name].write_text(yaml.safe_dump(experiment_fields("script_problem:WithScript") | fields))
    store = tmp_path / "whole/store"
    start(files["whole"], "--serial").finish()
    killed = kill_twenty_times(files["hurt"], progress_marks(store), ("serial",) * 20, random.Random(1))
    assert killed == (20, 0, 0)
    assert_equal_results(tmp_path / "hurt/store/results/toy", store / "results/toy")
    record_property("tried", sum(killed))
