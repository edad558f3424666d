"""The driver is killed with SIGKILL, again and again, wherever it happens to be. The result is the undisturbed run's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments import ROOT, experiment_file
from tests.toys import trainings


def start(file: Path, store: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "genrep_dist", "run", str(file), "--store", str(store), *options]
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
        resources={"task_seconds": 0.05, "memory_budget": "32KiB"},
    )


def progress_marks(store: Path) -> int:
    """How many files the store holds: it grows with every unit."""
    return sum(1 for path in store.rglob("*") if path.is_file()) if store.exists() else 0


@pytest.mark.parametrize("options", [("--serial",), pytest.param((), marks=pytest.mark.ray)], ids=["serial", "ray"])
def test_killed_runs_go_on_where_they_stopped(tmp_path: Path, options: tuple[str, ...]) -> None:
    whole = make(tmp_path / "whole")
    finish(start(whole, tmp_path / "whole" / "store", "--serial"))
    files = progress_marks(tmp_path / "whole" / "store")

    hurt = make(tmp_path / "hurt")
    store = tmp_path / "hurt" / "store"
    kills, chance = 0, random.Random(0)
    # Kill when the store has grown to random sizes, spread over the whole run, so that every stage is hit.
    for target in sorted(chance.sample(range(8, files - 6), 6 if options else 3)):
        process = start(hurt, store, *options)
        while process.poll() is None and progress_marks(store) < target:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 2
    finish(start(hurt, store, *options))

    for name in ("deletion.parquet", "summary.parquet", "table.md"):
        assert (store / "results/toy" / name).read_bytes() == (tmp_path / "whole/store/results/toy" / name).read_bytes()
    undisturbed, done = trainings(tmp_path / "whole"), trainings(tmp_path / "hurt")
    assert undisturbed <= done
    # A kill costs at most what was in flight: two slots, each with a task of a few models.
    models_in_flight = 1 + 8 if options == ("--serial",) else 2 * 8
    assert done <= undisturbed + kills * models_in_flight
