"""The clocks of machines disagree and jump: nothing that decides or names anything reads them."""

from __future__ import annotations

import ast
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import ROOT
from tests.faults.conftest import Undisturbed
from tests.faults.trial import Trial, assert_equal

WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "getmtime", "st_mtime"}
FOR_PEOPLE = {"paper/table1_files.py", "runner/heartbeat.py", "tracking/mlflow_tracker.py"}
"""Signs of life, MLflow's time stamps and the date of a table are shown to people; no unit, key, commit or lease depends on them."""
FOR_COPIES = {"store/shared_arrays.py"}
"""The age of copies of data on one machine, which are written again where they are missing."""

FOR_FILES = {"workflow/known_plans.py"}
"""The times of the last changes of data files, by which a kept plan is found: another time makes a plan again."""


def test_a_clock_that_jumps_by_days_changes_nothing(tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards and backwards, at every look at it: as if each unit ran on a machine of its own."""
    real, chance = time.time, random.Random(0)
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-1e6, 1e6))
    trial = Trial.make(tmp_path)
    trial.run_here()
    monkeypatch.undo()
    assert_equal(trial.published(), undisturbed.published)
    assert trial.trainings() == undisturbed.trainings


def test_no_other_module_reads_a_wall_clock() -> None:
    found = {}
    for path in sorted((ROOT / "genrep_dist").rglob("*.py")):
        names = {_dotted(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        read = {name for name in names if name in WALL_CLOCKS or name.rpartition(".")[2] in WALL_CLOCKS}
        if read:
            found[str(path.relative_to(ROOT / "genrep_dist"))] = read
    assert set(found) <= FOR_PEOPLE | FOR_COPIES | FOR_FILES, found


def _dotted(node: Any) -> str:
    """``a.b`` of the last two names of an attribute."""
    owner = node.value
    name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    return f"{name}.{node.attr}"
