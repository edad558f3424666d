"""Processes, nodes, drivers and the head of a real cluster of several nodes are killed. The results are the undisturbed run's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.nodes import Nodes, wait_until
from tests.faults.trial import SLOTS, Trial, assert_equal, finish, report

pytestmark = pytest.mark.ray

RAY_WAITS_SECONDS = "5"
"""Instead of a minute: how long Ray's processes wait for a head that is gone."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes.running((1, 1), gcs_rpc_server_reconnect_timeout_s=RAY_WAITS_SECONDS) as running:
        yield running


def start(trial: Trial, nodes: Nodes) -> subprocess.Popen[str]:
    return trial.start("--address", nodes.address, environment=nodes.environment)


def strike(process: subprocess.Popen[str], moment: Callable[[], Any], what: Callable[[], Any]) -> Any:
    """Do ``what`` as soon as ``moment`` is true, in a run that is still going on."""

    def come() -> Any:
        assert process.poll() is None, process.communicate()[0][-3000:]
        return moment()

    wait_until(come, seconds=240)
    return what()


def kill_busy(nodes: Nodes) -> None:
    """SIGKILL to a worker that has a unit in hand."""
    victim: psutil.Process = wait_until(lambda: random.Random(0).choice(nodes.busy() or [None]), every=0.002)
    victim.kill()


def test_workers_that_are_killed(tmp_path: Path, nodes: Nodes, undisturbed: Undisturbed, record_property: Any) -> None:
    """Two of the pool that computes gradients and kernels, two that retrain."""
    trial = Trial.make(tmp_path)
    process = start(trial, nodes)
    for _ in range(2):
        strike(process, nodes.busy, lambda: kill_busy(nodes))
    strike(process, lambda: trial.parts() >= 8, lambda: kill_busy(nodes))
    strike(process, lambda: trial.parts() >= 16, lambda: kill_busy(nodes))
    finish(process)
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, tried=4, trainings_repeated=trial.trainings() - undisturbed.trainings, attempts_repeated=trial.retried())
    # One unit a kill, of one model at most; a unit may have ended just before its process was.
    assert trial.trainings() - undisturbed.trainings <= 4
    assert trial.retried() <= 4


def test_a_node_that_is_lost(tmp_path: Path, nodes: Nodes, undisturbed: Undisturbed, record_property: Any) -> None:
    """Its raylet, its workers and what they have in hand, at once, while the pool of actors is at work; another node joins later."""
    trial = Trial.make(tmp_path)
    process = start(trial, nodes)
    _, first, _ = nodes.raylets
    strike(process, lambda: trial.recorded("artifacts/features/*/*/parts/*.json") and nodes.busy([first]), lambda: nodes.kill_node(first))
    strike(process, lambda: trial.parts() >= 8, nodes.add)
    finish(process)
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings, attempts_repeated=trial.retried())
    assert trial.trainings() == undisturbed.trainings
    # The unit in hand, and what had been handed to workers that were about to start there.
    assert 1 <= trial.retried() <= 3


def test_a_driver_that_is_killed(tmp_path: Path, nodes: Nodes, undisturbed: Undisturbed, record_property: Any) -> None:
    """The same command goes on. The cluster lives on, and gives its workers to the next driver."""
    trial = Trial.make(tmp_path)
    process = start(trial, nodes)
    strike(process, lambda: trial.parts() >= 12, partial(os.killpg, process.pid, signal.SIGKILL))
    process.communicate()
    assert not trial.recorded("results/toy/manifest.json")
    said = finish(start(trial, nodes))
    assert "another driver" not in said
    assert_equal(trial.published(), undisturbed.published)
    repeated = trial.trainings() - undisturbed.trainings
    report(record_property, trainings_repeated=repeated)
    # What was in flight: two tasks a slot, of one model each.
    assert repeated <= 2 * SLOTS


def test_two_drivers_on_one_cluster(tmp_path: Path, nodes: Nodes, undisturbed: Undisturbed, record_property: Any) -> None:
    """Started together, on one store: one works, the other waits and finds everything done."""
    trial = Trial.make(tmp_path)
    said = [finish(process) for process in [start(trial, nodes), start(trial, nodes)]]
    assert sum("another driver is at work" in text for text in said) == 1
    assert sum("everything is done already" in text for text in said) == 1
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings)
    assert trial.trainings() == undisturbed.trainings


def test_a_head_that_is_killed(tmp_path: Path, nodes: Nodes, undisturbed: Undisturbed, record_property: Any) -> None:
    """Ray cannot go on without the memory of its GCS, whether it is started again or not; nor need it: another cluster goes on."""
    gone, back = Trial.make(tmp_path / "gone"), Trial.make(tmp_path / "back")
    process = start(gone, nodes)
    strike(process, lambda: gone.recorded("artifacts/gram/*/*/parts/*.json"), nodes.kill_gcs)
    said = finish(process, code=1)
    assert "the head of the Ray cluster is gone" in said
    assert "run the same command there" in said

    with Nodes.running((1, 1), gcs_rpc_server_reconnect_timeout_s=RAY_WAITS_SECONDS) as another:
        finish(start(gone, another))
        process = start(back, another)
        strike(process, lambda: back.recorded("artifacts/gram/*/*/parts/*.json"), another.kill_gcs)
        another.restart_gcs()
        said = finish(process, code=1)
        assert "run the same command there" in said
    finish(back.start("--serial"))
    for trial in (gone, back):
        assert_equal(trial.published(), undisturbed.published)
    repeated = gone.trainings() + back.trainings() - 2 * undisturbed.trainings
    report(record_property, tried=2, trainings_repeated=repeated)
    assert repeated <= 2 * 2 * SLOTS
