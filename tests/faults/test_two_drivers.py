"""Two drivers on one store and one experiment at once: one works and the other waits; and where both work, no harm is done."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import StoreError
from genrep_dist.runner import run as pipeline
from genrep_dist.runner.progress import NoProgress
from genrep_dist.store import Store
from genrep_dist.store.lease import Lease
from genrep_dist.store.paths import lease_number
from tests.faults.conftest import Undisturbed
from tests.faults.nodes import wait_until
from tests.faults.trial import Trial, assert_equal, finish, report
from tests.store.s3_server import BUCKET, S3Server

WAITS = "another driver is at work"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server.running() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


def holder(trial: Trial) -> int:
    """The process that has the lease."""
    objects = Store(trial.store).objects
    paths = objects.list("experiments/toy/lease")
    return int(json.loads(objects.get(paths[-1]))["pid"]) if paths else 0


def test_when_the_one_that_works_is_killed_the_other_goes_on(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    trial = Trial.make(tmp_path)
    drivers = {process.pid: process for process in (trial.start("--serial"), trial.start("--serial"))}
    wait_until(lambda: trial.parts() >= 8, seconds=120)
    killed = holder(trial)
    os.killpg(killed, signal.SIGKILL)
    drivers.pop(killed).communicate()
    ((_, other),) = drivers.items()
    said = finish(other)
    assert WAITS in said
    assert_equal(trial.published(), undisturbed.published)
    repeated = trial.trainings() - undisturbed.trainings
    report(record_property, trainings_repeated=repeated)
    assert repeated <= 1


def test_in_a_bucket_one_works_and_the_other_finds_everything_done(
    tmp_path: Path, server: S3Server, undisturbed: Undisturbed, record_property: Any
) -> None:
    trial = Trial.make(tmp_path, store=f"s3://{BUCKET}/two")
    drivers = [trial.start("--serial"), trial.start("--serial")]
    said = [finish(process) for process in drivers]
    assert sum(WAITS in text for text in said) == 1
    assert sum("everything is done already" in text for text in said) == 1
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings)
    assert trial.trainings() == undisturbed.trainings


def test_without_a_lease_both_work_and_come_to_the_same(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    """A driver may sleep through its lease and go on: what two of them write at once must be harmless by itself."""
    trial = Trial.make(tmp_path)
    drivers = [trial.start("--serial", "--no-lease"), trial.start("--serial", "--no-lease")]
    for process in drivers:
        # Whoever comes second may find results that the first is about to replace, and says so; it writes nothing wrong.
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0 or "this run is not finished" in said, said
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings)
    assert trial.trainings() > undisturbed.trainings, "both did work, or nothing was shown"


def test_a_driver_that_is_stopped_beyond_its_lease_changes_nothing(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    """SIGSTOP while it trains; another driver takes over, and finishes; the first one wakes up and ends with an error."""
    trial = Trial.make(tmp_path)
    brief = {"GENREP_TEST_LEASE_SECONDS": "2"}
    first = trial.start("--serial", environment=brief)
    wait_until(lambda: trial.parts() >= 8, seconds=120)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        # The process exists, but its lease is not renewed.
        finish(trial.start("--serial", environment=brief))
    finally:
        os.kill(first.pid, signal.SIGCONT)
    said = finish(first, code=1)
    assert "another driver has taken over" in said
    assert_equal(trial.published(), undisturbed.published)
    repeated = trial.trainings() - undisturbed.trainings
    report(record_property, trainings_repeated=repeated)
    # What it had in hand, and what it began in the quarter of a second until it looked.
    assert repeated <= 8


class Intruder(NoProgress):
    """Writes the record of another question when retraining begins: a driver that another one has passed in its sleep finds it so."""

    def __init__(self, trial: Trial) -> None:
        self._objects = Store(trial.store).objects

    def stage(self, name: str, total: int, done: int) -> None:
        if name == "retrain":
            record = self._objects.get_json("experiments/toy/record.json")
            record["experiment"]["deletion"]["fractions"] = [0.0, 0.3]
            self._objects.put_json("experiments/toy/record.json", record)


def test_results_are_never_mixed(tmp_path: Path, undisturbed: Undisturbed) -> None:
    """What one driver has computed is not published under what another one has asked."""
    trial = Trial.make(tmp_path)
    with pytest.raises(StoreError, match="another experiment under this name"):
        trial.run_here(Intruder(trial))
    assert not trial.recorded("results/toy/*")
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)
    assert trial.trainings() == undisturbed.trainings


class Sleeper(NoProgress):
    """When the first model is retrained, this driver has slept so long that another one has its lease."""

    def __init__(self, trial: Trial) -> None:
        self._trial, self._stage = trial, ""
        self.trained_until_told = 0

    def stage(self, name: str, total: int, done: int) -> None:
        self._stage = name

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._stage == "retrain" and not self.trained_until_told:
            self.trained_until_told = self._trial.trainings()
            objects = Store(self._trial.store).objects
            (last,) = [lease_number(path) for path in objects.list("experiments/toy/lease")]
            objects.put_json(f"experiments/toy/lease/{last + 1:012d}.json", {"token": "theirs", "released": True})
            time.sleep(0.3)


def test_a_driver_that_lost_its_lease_stops_after_the_unit_in_hand(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_lease", lambda store, name, _: Lease(store.objects, f"experiments/{name}/lease", renew_seconds=0.02))
    trial = Trial.make(tmp_path)
    sleeper = Sleeper(trial)
    with pytest.raises(StoreError, match="another driver has taken over"):
        trial.run_here(sleeper)
    assert 0 < trial.trainings() - sleeper.trained_until_told + 1 <= 2
    assert Store(trial.store).objects.get_json("experiments/toy/progress.json")["state"] == "running", "it writes nothing any more"
    trial.run_here()
    assert_equal(trial.published(), undisturbed.published)
    assert trial.trainings() == undisturbed.trainings
