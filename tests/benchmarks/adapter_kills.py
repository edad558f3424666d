"""SIGKILL at twenty random moments of a run that trains through Hugging Face's Trainer (docs/your-model.md): its tables are unchanged.

Serial runs lose their driver, runs through Ray three workers and then their driver. A moment is a random size of the store, so that kills
are spread over all stages. Needs the extra `adapters`. The last line says what was killed, and how long the undisturbed run and the
disturbed ones took together.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.experiments import ROOT
from tests.test_kill import WORKERS_KILLED, kill_a_worker, progress_marks, wait_for
from tests.test_your_model import make

SESSIONS = ("serial",) * 6 + ("ray",) + ("serial",) * 4 + ("ray",) + ("serial",) * 2
FIELDS = {
    "seeds": 2,
    "test_points": 2,
    "deletion": {"fractions": [0.0, 0.1, 0.2], "signs": ["negative", "positive"]},
    "resources": {"task_seconds": 0.5, "workers": 2, "retries": 5},
}
RUN = """
import importlib
import sys

import genrep_dist as gr
from genrep_dist.runner import publish
from tests import plain_scripts
from tests.test_your_model import PROBLEMS

publish._track = lambda *a, **k: type("Link", (), dict(tracking_uri="", experiment_id="", run_id="", hint="none"))()
module, how = sys.argv[1:]
plain_scripts.write_scores(getattr(importlib.import_module(module), PROBLEMS[module])(), f"{module}-scores.npz")
gr.run(f"{module}.yaml", serial=how == "serial")
"""


def start(folder: Path, module: str, how: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "run.py", module, how]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(errors.decode())


def undisturbed(folder: Path, module: str) -> Path:
    """The store of a serial run."""
    folder.mkdir()
    make(folder, **FIELDS)
    (folder / "run.py").write_text(RUN)
    finish(start(folder, module, "serial"))
    return folder / "store"


def disturbed(folder: Path, module: str, targets: list[int], chance: random.Random) -> tuple[Path, dict[str, int]]:
    """The store of a run that was killed when its store had grown to ``targets`` files, and how often what was killed."""
    folder.mkdir()
    make(folder, **FIELDS)
    (folder / "run.py").write_text(RUN)
    store, left, killed = folder / "store", iter(targets), {"serial drivers": 0, "drivers": 0, "workers": 0}
    for session in SESSIONS:
        process = start(folder, module, session)
        for _ in range(WORKERS_KILLED if session == "ray" else 0):
            killed["workers"] += wait_for(store, next(left), process) and kill_a_worker(process, chance)
        if wait_for(store, next(left), process):
            os.killpg(process.pid, signal.SIGKILL)
            killed["drivers" if session == "ray" else "serial drivers"] += 1
        process.communicate()
    finish(start(folder, module, "ray"))
    return store, killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", nargs="?", default="bert_problem")
    options = parser.parse_args()
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.monotonic()
        whole = undisturbed(folder / "whole", options.module)
        undisturbed_seconds, began = time.monotonic() - began, time.monotonic()
        moments = sum(1 if session == "serial" else WORKERS_KILLED + 1 for session in SESSIONS)
        targets = sorted(chance.sample(range(4, progress_marks(whole) - 16), moments))
        store, killed = disturbed(folder / "hurt", options.module, targets, chance)
        results = Path("results") / options.module
        tables = ["deletion.parquet", "points.parquet", "summary.parquet", "table.md"]
        differing = [table for table in tables if (whole / results / table).read_bytes() != (store / results / table).read_bytes()]
        seconds = time.monotonic() - began
    if differing:
        raise SystemExit(f"these differ: {', '.join(differing)}")
    kills = ", ".join(f"{count} {what}" for what, count in killed.items())
    print(
        f"{options.module}: {kills} killed; equal: {', '.join(tables)}; {undisturbed_seconds:.0f} s undisturbed, {seconds:.0f} s disturbed"
    )


if __name__ == "__main__":
    main()
