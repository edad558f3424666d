"""Limits on how long work may take: what they interrupt, what they spare, and what the error shows."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genrep_dist.errors import TimeLimitError
from genrep_dist.workflow import time_limit as module
from genrep_dist.workflow.time_limit import time_limit
from tests.experiments import ROOT


def slow_module(folder: Path, name: str, patch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text("import time\ntime.sleep(0.3)\nloaded = True\n")
    patch.syspath_prepend(str(folder))
    patch.setattr(module, "REPEAT_SECONDS", 0.05)


def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_module(tmp_path, "imported_slowly", monkeypatch)

    def train() -> None:
        importlib.import_module("imported_slowly")
        time.sleep(5)

    with pytest.raises(TimeLimitError), time_limit(0.05, "training"):
        train()
    assert sys.modules["imported_slowly"].loaded


def test_an_import_that_does_not_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_module(tmp_path, "imported_for_ever", monkeypatch)
    monkeypatch.setattr(module, "IMPORT_SECONDS", 0.1)
    with pytest.raises(TimeLimitError, match="imported_for_ever"), time_limit(0.05, "training"):
        importlib.import_module("imported_for_ever")


def test_work_inside_of_an_import_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script without a main guard, imported by another one, runs everything while it is imported."""
    source = "import time\nfrom genrep_dist.workflow.time_limit import time_limit\nwith time_limit(0.05, 'training'):\n    time.sleep(5)\n"
    (tmp_path / "works_when_imported.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TimeLimitError):
        importlib.import_module("works_when_imported")


def test_the_error_shows_the_calls_that_were_running() -> None:
    def endless() -> None:
        while True:
            time.sleep(0.01)

    with pytest.raises(TimeLimitError) as found, time_limit(0.05, "training of one model"):
        endless()
    text = str(found.value)
    assert "training of one model" in text
    assert "in endless" in text
    assert "time.sleep(0.01)" in text
    assert "pytest/" not in text, "only what runs inside of the limit"


@pytest.mark.parametrize(("call", "ends"), [("ctypes.CDLL(None).pause()", True), ("ctypes.PyDLL(None).pause()", True), ("None", False)])
def test_a_worker_ends_with_a_call_that_does_not_return(call: str, ends: bool) -> None:
    """A call of a C library, with and without the interpreter's lock."""
    code = (
        "import ctypes\nfrom genrep_dist.workflow import time_limit\ntime_limit.RETURN_SECONDS = 0.1\n"
        f"def train():\n    {call}\nwith time_limit.process_limit(0.1):\n    train()\nprint('done')"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode != 0) == ends
    assert ("in train" in found.stderr) == ends
    assert ("done" in found.stdout) != ends
