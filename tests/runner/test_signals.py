"""Stopping a run: by one signal, by two, alone and through Ray. The command that it prints goes on, to the undisturbed run's results."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from genrep_dist.executors.ray_executor import IN_FLIGHT_PER_SLOT
from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

METHODS = ["ntk-final/tracking", "random"]
STOPPED_AFTER = 8
"""Trainings: two originals, and some retrainings."""

IN_FLIGHT = 2 * IN_FLIGHT_PER_SLOT
"""Trainings at most that are abandoned: on two slots, tasks of one model each."""


def start(folder: Path, *options: str, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        *python,
        "-m",
        "tests.faults.driver",
        "run",
        str(folder / "toy.yaml"),
        "--store",
        str(folder / "store"),
        *options,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def make(folder: Path) -> Path:
    folder.mkdir()
    experiment_file(
        folder / "toy.yaml",
        "tests.toys:Counting",
        {"folder": str(folder), "epochs": 25},
        methods=METHODS,
        resources={"task_seconds": 1e-9, "workers": 2},
    )
    return folder


def wait_until_trained(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    while trainings(folder) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed, and the names of the modules that it imported."""
    folder = make(tmp_path_factory.mktemp("whole") / "run")
    process = start(folder, "--serial", python=("-X", "importtime"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    (folder / "imports").write_text("\n".join(re.findall(r"^import time:.*\| +(\S+)$", errors, re.MULTILINE)))
    return folder


def test_a_run_imports_nothing_large_that_it_does_not_need(whole: Path) -> None:
    """Each of these takes a third of a second or more, in every driver and, but for scipy.stats, in every worker."""
    imported = set((whole / "imports").read_text().split())
    assert {"torch", "polars", "zarr"} <= imported
    assert imported & {"pandas", "sympy", "torch._dynamo", "scipy.stats", "sklearn", "mlflow", "ray"} == set()


def go_on(said: str) -> None:
    """Run what a stopped run has printed, word for word."""
    command = re.search(r"^to resume: (.*)$", said, re.MULTILINE)
    assert command is not None, said
    result = subprocess.run(shlex.split(command[1]), cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr


def assert_same_results(folder: Path, whole: Path) -> None:
    for name in ("deletion", "summary"):
        one, other = (pq.read_table(place / f"store/results/toy/{name}.parquet") for place in (folder, whole))
        assert one.equals(other), name


@pytest.mark.parametrize(
    ("number", "options", "code"),
    [
        (signal.SIGTERM, ("--serial",), 143),
        pytest.param(signal.SIGINT, ("--ray",), 130, marks=pytest.mark.ray),
    ],
)
def test_a_signal_stops_says_what_is_done_and_how_to_go_on(
    tmp_path: Path, whole: Path, number: signal.Signals, options: tuple[str, ...], code: int
) -> None:
    folder = make(tmp_path / "run")
    process = start(folder, *options)
    wait_until_trained(folder, STOPPED_AFTER, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == code, errors
    assert errors.startswith(f"{number.name}: stopping; a second signal stops immediately\ndone and kept: train 2 of 2, ")
    kept = re.search(r"retrain (\d+) of (\d+)$", errors, re.MULTILINE)
    assert kept is not None
    assert 0 < int(kept[1]) < int(kept[2])
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == [], "a stopped run leaves no process behind"

    go_on(errors)
    assert_same_results(folder, whole)
    # At most what was in flight is trained twice.
    assert trainings(whole) <= trainings(folder) <= trainings(whole) + IN_FLIGHT


@pytest.mark.ray
def test_a_second_signal_ends_at_once_and_loses_nothing_committed(tmp_path: Path, whole: Path) -> None:
    folder = make(tmp_path / "run")
    process = start(folder, "--ray")
    wait_until_trained(folder, STOPPED_AFTER, process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.readline() + process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, rest = process.communicate(timeout=200)
    assert time.monotonic() - began < 20, "it does not wait for the end of what is in flight"
    assert process.returncode == 130
    assert "stopped immediately; committed results are kept" in rest
    kept = re.search(r"retrain (\d+) of", said)
    assert kept is not None, said
    go_on(said.replace("--ray", "--serial"))
    assert_same_results(folder, whole)
    assert trainings(folder) <= trainings(whole) + IN_FLIGHT


def test_what_was_told_to_be_ignored_stays_ignored() -> None:
    """As `nohup` and a shell's background jobs do."""
    code = (
        "import os, signal\n"
        "from genrep_dist.runner.signals import Signals\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with Signals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    assert signals.received is None\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        assert (signals.name, signals.exit_code) == ('SIGTERM', 143)\n"
        "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
