"""Units that end their process in every attempt: quarantined, named with their samples, not tried for ever; the rest is done."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist import cli
from genrep_dist.errors import FailureKind, UnitError
from genrep_dist.executors.base import Failure, Outcome
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.runner.quarantine import Quarantine, clear_quarantine
from genrep_dist.runner.stage_runner import StageRunner, Workers
from genrep_dist.store import Store
from genrep_dist.units import Retraining, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.gradients import GradientUnit
from genrep_dist.workflow.kernels import GramUnit, KernelUnit
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.retrain import RetrainUnit
from genrep_dist.workflow.train import TrainUnit
from tests.experiments import ROOT, experiment
from tests.faults.conftest import Undisturbed
from tests.faults.toys import Faulty, arm, deaths, disarm, first_weight
from tests.faults.trial import Trial, assert_equal, finish, report

RESOURCES = {"task_seconds": 1.0, "memory_budget": "32KiB", "workers": 2, "retries": 1}
ATTEMPTS = 1 + RESOURCES["retries"]  # type: ignore[operator]


def asked(run: gr.Run) -> list[dict[str, Any]]:
    """Every distinct removal of the experiment."""
    rows = run.store.ledger(run.plan.keys.training).scan().select("key", "seed", "removed").unique().collect()
    return [row for row in rows.to_dicts() if row["removed"]]


def status(folder: Path, *options: str) -> str:
    return CliRunner().invoke(cli.app, ["status", "toy", "--store", str(folder / "store"), *options]).output


@pytest.mark.ray
def test_a_block_that_kills_its_process(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    """One sample, with one seed's model. The other seed's results are made; the second run tries nothing; a mended one is as ever."""
    whole = gr.open_run(undisturbed.trial.store, "toy")
    sample = whole.train_ids(1)[13]
    trial = Trial.make(tmp_path, resources=RESOURCES)
    arm(tmp_path, row=Faulty(str(tmp_path)).row(sample), weight=first_weight(whole.checkpoint(1, "final")))

    said = finish(trial.start("--ray"), code=1)
    assert "1 units of work are in quarantine" in said
    assert "kernels seed=1 trap" in said
    assert str(sample) in said
    assert "--retry-failed" in said
    assert deaths(tmp_path) == ATTEMPTS
    record = Store(trial.store).objects.get_json("experiments/toy/quarantine.json")
    assert [entry["attempts"] for entry in record.values()] == [ATTEMPTS]
    assert all(sample in entry["sample_ids"] for entry in record.values())
    found = {row["key"] for row in asked(gr.open_run(trial.store, "toy"))}
    assert found == {row["key"] for row in asked(whole) if row["seed"] == 0}, "all of the other seed, and nothing of this one"
    assert not trial.recorded("results/toy/manifest.json")
    assert "in quarantine, not retried without --retry-failed: 1 units: kernels seed=1 trap" in status(tmp_path)
    assert json.loads(status(tmp_path, "--json"))["quarantine"] == list(record.values())

    # In one process: if the block were tried again, that would be the driver's end.
    said = finish(trial.start("--serial"), code=1)
    assert "1 units of work are in quarantine" in said
    assert deaths(tmp_path) == ATTEMPTS

    disarm(tmp_path)
    finish(trial.start("--serial", "--retry-failed"))
    assert_equal(trial.published(), undisturbed.published)
    assert not trial.recorded("experiments/toy/quarantine.json")
    assert "quarantine" not in status(tmp_path)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings, attempts_repeated=deaths(tmp_path) - 1)
    assert trial.trainings() == undisturbed.trainings


@pytest.mark.ray
def test_retrainings_that_kill_their_process(tmp_path: Path, undisturbed: Undisturbed, record_property: Any) -> None:
    """Those without one sample. They share tasks with others, which are trained one by one; more attempts release them, too."""
    whole = gr.open_run(undisturbed.trial.store, "toy")
    removals = [set(row["removed"]) for row in asked(whole)]
    sample = min((sample for removed in removals for sample in removed), key=lambda one: (sum(one in removed for removed in removals), one))
    poisoned = sum(sample in removed for removed in removals)
    assert 1 <= poisoned <= 3
    # A single worker, and tasks of several models however slow the machine is.
    trial = Trial.make(tmp_path, resources=RESOURCES | {"workers": 1, "task_seconds": 60.0})
    arm(tmp_path, without=Faulty(str(tmp_path)).row(sample))

    said = finish(trial.start("--ray"), code=1)
    assert f"{poisoned} units of work are in quarantine" in said
    assert "without samples" in said
    assert str(sample) in said
    missing = [row for row in asked(whole) if row["key"] not in {row["key"] for row in asked(gr.open_run(trial.store, "toy"))}]
    assert len(missing) == poisoned
    assert all(sample in row["removed"] for row in missing)

    before = deaths(tmp_path)
    disarm(tmp_path)
    finish(trial.start("--serial"), code=1)
    finish(trial.start("--serial", "--set", "resources.retries=5"))
    assert deaths(tmp_path) == before
    assert_equal(trial.published(), undisturbed.published)
    report(record_property, trainings_repeated=trial.trainings() - undisturbed.trainings, deaths=before)
    # A task is tried as often as it may, and then each of its models alone.
    assert ATTEMPTS * (1 + poisoned) <= before <= ATTEMPTS * 2 * poisoned


class _Deadly(SerialExecutor):
    """The process that trains seed 1 ends, so it seems."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        for unit in units:
            if isinstance(unit, TrainUnit) and unit.seed == 1:
                yield Outcome.failed(unit, 1, Failure(RuntimeError("gone"), FailureKind.CRASHED))
            else:
                yield from super().run(job, [unit], actors=actors)


def test_an_original_that_cannot_be_trained_is_named_when_only_those_are_asked_for(tmp_path: Path) -> None:
    asked_for = experiment(seeds=[0, 1, 2], resources={"retries": 0})
    prepared = prepare(asked_for, Store(str(tmp_path)), [str(ROOT)])
    publish_inputs(prepared)
    with pytest.raises(UnitError, match="train seed=1"):
        StageRunner(prepared, ProgressCounter(), Workers(asked_for, executor=_Deadly(0))).train_originals()
    done = [prepared.store.artifact("train", prepared.plan.keys.train(seed)).is_committed() for seed in (0, 1, 2)]
    assert done == [True, False, True]


def test_the_record(tmp_path: Path) -> None:
    import numpy as np

    store = Store(str(tmp_path))
    ids = np.arange(100, 120)
    crash = Failure(RuntimeError("gone"), FailureKind.CRASHED)
    block, model = GradientUnit(0, "ntk", 4, 5, 10), RetrainUnit(0, (Retraining("k" * 64, 1, "same", (104, 107)),))
    quarantine = Quarantine(store, "toy", "question", max_attempts=3)
    quarantine.raise_if_skipped()
    assert quarantine.runnable([block, model]) == [block, model]
    quarantine.add(Outcome.failed(block, 3, crash), ids)
    quarantine.add(Outcome.failed(model, 3, crash), ids)
    with pytest.raises(UnitError, match=r"2 units[\s\S]*samples 105, 106, 107, 108, 109[\s\S]*without samples 104, 107"):
        quarantine.raise_if_skipped()
    later = Quarantine(store, "toy", "question", max_attempts=3)
    later.raise_if_skipped()
    assert later.runnable([block, model, TrainUnit(0)]) == [TrainUnit(0)]
    assert later.contains("k" * 64)
    with pytest.raises(UnitError):
        later.raise_if_skipped()
    assert Quarantine(store, "toy", "question", max_attempts=4).runnable([block]) == [block]
    assert Quarantine(store, "toy", "another question", max_attempts=3).runnable([block]) == [block]
    assert clear_quarantine(store, "toy")
    assert not clear_quarantine(store, "toy")
    assert Quarantine(store, "toy", "question", max_attempts=3).runnable([block]) == [block]


def test_the_samples_of_a_unit() -> None:
    import numpy as np

    ids = np.arange(100, 120)
    assert KernelUnit(0, "ntk", 4, 18, 25, False).samples(ids) == ("samples", [118, 119])
    assert GramUnit(0, "ntk", 4, 0, 2, 8, 4, True).samples(ids) == ("samples", [*range(100, 108), *range(116, 120)])
    assert GramUnit(0, "ntk", 4, 1, 1, 8, 4, True).samples(ids) == ("samples", list(range(108, 116)))
    assert TrainUnit(0).samples(ids) == ("", [])
