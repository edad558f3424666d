"""Tasks run out of memory: tried again, then reported by the name of what happened; the rest is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import UnitError
from tests.faults.conftest import Undisturbed
from tests.faults.toys import arm, disarm
from tests.faults.trial import RETRIES, Trial, assert_equal, finish, report


def test_a_memory_error_now_and_then_changes_nothing(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    trial = Trial.make(tmp_path)
    arm(tmp_path, memory=5)
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, attempts_repeated=trial.retried())
    assert trial.retried() == trial.trainings() - undisturbed.trainings == trial.trainings() // 5


def test_a_memory_error_every_time_is_reported(tmp_path: Path, undisturbed: Undisturbed) -> None:
    trial = Trial.make(tmp_path)
    arm(tmp_path, memory=1)
    with pytest.raises(UnitError, match=r"MemoryError[\s\S]*resources\.memory_budget"):
        trial.run_here()
    assert trial.trainings() == 2 * (1 + RETRIES)
    disarm(tmp_path)
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)


@pytest.mark.ray
def test_workers_that_ray_kills_for_their_memory(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """Its memory monitor is told that a hundredth of the machine's memory is too much."""
    trial = Trial.make(tmp_path, resources={"retries": 1, "workers": 1, "memory_budget": "32KiB"})
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "50"}
    said = finish(trial.start("--ray", environment=limits), code=1)
    assert "OutOfMemoryError" in said
    assert "resources.workers" in said
    assert "quarantine" not in said
    finish(trial.start("--serial"))
    assert_equal(trial.published(), undisturbed.published)
