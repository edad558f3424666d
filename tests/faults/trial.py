"""One small experiment for all faults: its drivers, what it publishes, and what a fault has cost."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genrep_dist as gr
from genrep_dist.runner.progress import Progress
from genrep_dist.store import Store
from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

METHODS = ["ntk-final/surrogate", "influence-function", "trap-final/target", "random"]
FRACTIONS = [0.0, 0.1, 0.2]
RETRIES = 3
SLOTS = 2


@dataclass(frozen=True)
class Trial:
    """The experiment in one folder: its file, its store, its count of trainings."""

    folder: Path
    file: Path
    store: str

    @classmethod
    def make(cls, folder: Path, store: str | None = None, **fields: Any) -> Trial:
        """Units are small: four row blocks, thirteen tiles a seed, one model a task. So a fault finds many moments to strike."""
        folder.mkdir(parents=True, exist_ok=True)
        resources = {"task_seconds": 0.01, "memory_budget": "32KiB", "workers": SLOTS, "retries": RETRIES}
        file = experiment_file(
            folder / "toy.yaml",
            "tests.faults.toys:Faulty",
            {"folder": str(folder), "epochs": 12},
            **{
                "methods": METHODS,
                "kernels": {"trap": {"class": "tests.faults.toys:Trap"}},
                "deletion": {"fractions": FRACTIONS},
                "resources": resources,
            }
            | fields,
        )
        return cls(folder, file, store or str(folder / "store"))

    def start(self, *options: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A driver: `genrep run` in a process group of its own; what it says goes to its output."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driver", "run", str(self.file), "--store", self.store, *options],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"} | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run_here(self, progress: Progress | None = None) -> None:
        """Run it serially in this process."""
        gr.run(str(self.file), store=self.store, serial=True, search_path=[str(ROOT)], progress=progress)

    def trainings(self) -> int:
        return trainings(self.folder)

    def retried(self) -> int:
        """Attempts that the last run has made again, as it reports itself."""
        failures: dict[str, Any] = Store(self.store).objects.get_json("experiments/toy/progress.json")["failures"]
        return int(failures["retried"])

    def parts(self) -> int:
        """How many ledger parts there are: one a task of retrainings, and one a seed."""
        return len([path for path in Store(self.store).objects.list("ledger") if path.endswith(".parquet")])

    def recorded(self, pattern: str) -> list[Path]:
        """Files of a local store."""
        return sorted(Path(self.store).glob(pattern)) if Path(self.store).exists() else []

    def published(self) -> dict[str, Any]:
        """Everything that a reader may look at and that holds no seconds: public tables, every array of every artifact, the ledger."""
        objects = Store(self.store).objects
        # Results that were replaced are kept below "previous/".
        files = [path for path in objects.list("results") if "/previous/" not in path]
        results = [path for path in files if path.endswith((".parquet", "table.md")) and "costs" not in path]
        arrays = [path for path in objects.list("artifacts") if "/c/" in path]
        found: dict[str, Any] = {path: hashlib.sha256(objects.get(path)).hexdigest() for path in [*results, *arrays]}
        (training,) = {path.split("/")[1] for path in objects.list("ledger")}
        rows = Store(self.store).ledger(training).scan().drop("seconds").collect()
        # A key that two tasks have trained comes twice, with equal rows.
        found["ledger"] = rows.unique().sort("key").to_dicts()
        assert len(found["ledger"]) == rows["key"].n_unique()
        return found


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 300.0) -> str:
    """What a driver has said, once it has ended with ``code``."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {seconds} s: {process.communicate()[0][-3000:]}") from None
    assert process.returncode == code, said[-5000:]
    return said


def assert_equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Byte for byte; says what differs."""
    assert sorted(found) == sorted(expected), sorted(set(found) ^ set(expected))
    assert [name for name in expected if found[name] != expected[name]] == []


def report(record: Any, **numbers: int) -> None:
    """What a fault has cost, into the test's record (`--junitxml`) and its output (`-rP`)."""
    for name, number in numbers.items():
        record(name, number)
        sys.stdout.write(f"{name}: {number}\n")
