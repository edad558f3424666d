"""Conformance tests of executors.

.. code-block:: python

    from genrep_dist.testing import ExecutorTests

    class TestMyExecutor(ExecutorTests):
        isolates_processes = True

        def make_executor(self, resources):
            return MyExecutor(resources)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from genrep_dist.config import Experiment
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import CorruptError, FailureKind, ProblemError
from genrep_dist.executors.base import Executor, Outcome
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.runner.run import run
from genrep_dist.store import Store
from genrep_dist.store.paths import ResultPaths
from genrep_dist.testing.problems import DAMAGED, Fault, trainings
from genrep_dist.units import Unit
from genrep_dist.workflow.execute import execute
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.train import TrainUnit

RETRIES = 2
SEEDS = range(4)
EITHER = pytest.mark.parametrize("actors", [False, True], ids=["tasks", "actors"], scope="class")
"""All tests with tasks, then all with actors: an executor that keeps processes may use them for several tests."""


class Workload:
    """Training units of an experiment in ``folder``, and requests for their failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder / "store"))
        self._prepared = prepare(make_experiment(folder), self.store)
        publish_inputs(self._prepared)
        self.job = self._prepared.job
        self.units: list[Unit] = [TrainUnit(seed) for seed in SEEDS]
        # One training of each seed in another store shows how its log identifies it.
        scratch = prepare(make_experiment(folder), Store(str(folder / "scratch")))
        publish_inputs(scratch)
        self._identities = []
        for unit in self.units:
            execute(scratch.job, unit)
            self._identities.append(trainings(folder)[-1])
        (folder / "trainings").unlink()

    def fail(self, seed: int, fault: Fault, times: int | None = None) -> None:
        """Request that the first ``times`` trainings of a seed fail; None: all of them."""
        (self.folder / "faults.json").write_text(json.dumps({self._identities[seed]: (fault, times)}))

    def num_trainings(self, seed: int) -> int:
        return trainings(self.folder).count(self._identities[seed])

    def committed(self) -> list[int]:
        """Seeds whose model is trained and committed."""
        return [seed for seed in SEEDS if self.store.artifact("train", self._prepared.plan.keys.train(seed)).is_committed()]


def make_experiment(folder: Path) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "conformance",
            "problem": {"name": "genrep_dist.testing.problems:FaultyProblem", "options": {"folder": str(folder)}},
            "seeds": len(SEEDS),
            "test_points": 2,
            "methods": ["ntk-final/target", "ntk-final/surrogate", "random"],
            "deletion": {"fractions": [0.0, 0.25], "signs": ["negative", "positive"]},
            "resources": {"memory_budget": "32KiB", "task_seconds": 0.01},
        }
    )


class ExecutorTests:
    """The contract of :class:`genrep_dist.executors.base.Executor`. A subclass defines :meth:`make_executor`."""

    isolates_processes = False
    """Set to True if a unit that crashes its process does not end the driver."""
    max_in_flight_per_slot = 2
    """Units that the executor may take from its source for each slot before their outcomes are read."""

    def make_executor(self, resources: ResourcesSection) -> Executor:
        """Make an executor with ``resources.workers`` slots, which makes at most ``1 + resources.retries`` attempts at a unit."""
        raise NotImplementedError

    @pytest.fixture
    def executor(self) -> Iterator[Executor]:
        made = self.make_executor(ResourcesSection.model_validate({"workers": 2, "retries": RETRIES}))
        yield made
        made.close()

    @pytest.fixture
    def workload(self, tmp_path: Path) -> Workload:
        return Workload(tmp_path)

    def test_attributes(self, executor: Executor) -> None:
        assert executor.name
        assert executor.memory_bytes > 0
        assert executor.slots == executor.slots_for("retrain")
        assert all(executor.slots_for(stage) >= 1 for stage in STAGES)

    @EITHER
    def test_each_unit_has_one_outcome(self, executor: Executor, workload: Workload, actors: bool) -> None:
        outcomes = list(executor.run(workload.job, iter(workload.units), actors=actors))
        check_all_ended(outcomes, workload.units)
        assert all(outcome.failure is None and outcome.error is None and outcome.attempts == 1 for outcome in outcomes)
        assert all(isinstance(value, float) for outcome in outcomes for value in outcome.statistics.values())
        assert workload.committed() == list(SEEDS)

    @EITHER
    def test_no_units(self, executor: Executor, workload: Workload, actors: bool) -> None:
        assert list(executor.run(workload.job, [], actors=actors)) == []

    @EITHER
    def test_units_are_taken_lazily(self, executor: Executor, workload: Workload, actors: bool) -> None:
        taken = ended = most = 0

        def source() -> Iterator[Unit]:
            nonlocal taken, most
            for index in range(24):
                taken += 1
                most = max(most, taken - ended)
                yield workload.units[index % len(workload.units)]

        for outcome in executor.run(workload.job, source(), actors=actors):
            ended += 1
            assert outcome.failure is None
        assert taken == ended == 24
        assert most <= 1 + self.max_in_flight_per_slot * executor.slots_for("train")

    @EITHER
    @pytest.mark.parametrize("fault", ["retryable", "out_of_memory"])
    def test_a_retryable_failure_is_retried(self, executor: Executor, workload: Workload, actors: bool, fault: Fault) -> None:
        workload.fail(1, fault, times=RETRIES)
        outcomes = list(executor.run(workload.job, workload.units, actors=actors))
        check_all_ended(outcomes, workload.units)
        assert all(outcome.failure is None for outcome in outcomes)
        assert [outcome.attempts for outcome in by_unit(outcomes, workload.units)] == [1, 1 + RETRIES, 1, 1]
        assert workload.num_trainings(1) == 1 + RETRIES

    @EITHER
    @pytest.mark.parametrize(
        ("fault", "kind", "error"),
        [
            ("retryable", FailureKind.RETRYABLE, RuntimeError),
            ("out_of_memory", FailureKind.OUT_OF_MEMORY, MemoryError),
            ("fatal", FailureKind.FATAL, ProblemError),
            ("corrupt", FailureKind.CORRUPT, CorruptError),
        ],
    )
    def test_a_failing_unit_does_not_stop_the_others(
        self, executor: Executor, workload: Workload, actors: bool, fault: Fault, kind: FailureKind, error: type[Exception]
    ) -> None:
        workload.fail(0, fault)
        outcomes = list(executor.run(workload.job, workload.units, actors=actors))
        check_all_ended(outcomes, workload.units)
        failed, *others = by_unit(outcomes, workload.units)
        assert all(outcome.failure is None for outcome in others)
        assert workload.committed() == list(SEEDS)[1:]
        assert failed.failure is not None
        assert failed.failure.kind is kind
        assert isinstance(failed.error, error)
        assert "requested by a test" in str(failed.error)
        assert failed.statistics == {}
        # Fatal and corrupt failures are not retried.
        assert failed.attempts == workload.num_trainings(0) == (1 + RETRIES if kind.is_retryable else 1)

    def test_an_error_keeps_its_parts(self, executor: Executor, workload: Workload) -> None:
        workload.fail(0, "fatal")
        (outcome,) = executor.run(workload.job, workload.units[:1])
        assert isinstance(outcome.error, ProblemError)
        assert (outcome.error.where, outcome.error.remedy) == ("the training", "none")
        workload.fail(0, "corrupt")
        (outcome,) = executor.run(workload.job, workload.units[:1])
        assert isinstance(outcome.error, CorruptError)
        assert outcome.error.damaged == DAMAGED

    @EITHER
    def test_a_crash_ends_only_its_own_process(self, executor: Executor, workload: Workload, actors: bool) -> None:
        if not self.isolates_processes:
            pytest.skip("this executor does not isolate processes")
        workload.fail(2, "crash")
        outcomes = list(executor.run(workload.job, workload.units, actors=actors))
        check_all_ended(outcomes, workload.units)
        crashed = [outcome for outcome in outcomes if outcome.failure is not None]
        assert [(outcome.unit, outcome.crashed, outcome.attempts) for outcome in crashed] == [(workload.units[2], True, 1 + RETRIES)]

    def test_a_crash_is_retried(self, executor: Executor, workload: Workload) -> None:
        if not self.isolates_processes:
            pytest.skip("this executor does not isolate processes")
        workload.fail(2, "crash", times=1)
        outcomes = by_unit(list(executor.run(workload.job, workload.units)), workload.units)
        assert [(outcome.failure, outcome.attempts) for outcome in outcomes] == [(None, 1), (None, 1), (None, 2), (None, 1)]

    @EITHER
    def test_a_run_can_be_closed_early(self, executor: Executor, workload: Workload, actors: bool) -> None:
        running = executor.run(workload.job, (unit for _ in range(100) for unit in workload.units), actors=actors)
        assert next(running).failure is None
        running.close()
        outcomes = list(executor.run(workload.job, workload.units, actors=actors))
        check_all_ended(outcomes, workload.units)
        assert all(outcome.failure is None for outcome in outcomes)

    def test_results_equal_those_of_the_serial_executor(self, executor: Executor, tmp_path: Path) -> None:
        contents = []
        for place, used in (("serial", SerialExecutor(0)), ("tested", executor)):
            (tmp_path / place).mkdir()
            done = run(make_experiment(tmp_path / place), store=str(tmp_path / place / "store"), executor=used)
            tables = [ResultPaths(done.name).table(name) for name in ("deletion", "points", "summary")]
            contents.append([done.store.objects.get(path) for path in tables])
        assert contents[0] == contents[1]


def check_all_ended(outcomes: Sequence[Outcome], units: Sequence[Unit]) -> None:
    """Every unit has exactly one outcome."""
    assert sorted(outcome.unit.label for outcome in outcomes) == sorted(unit.label for unit in units)


def by_unit(outcomes: Sequence[Outcome], units: Sequence[Unit]) -> list[Outcome]:
    """The outcomes in the order of ``units``."""
    return sorted(outcomes, key=lambda outcome: units.index(outcome.unit))
