"""Every executor passes the conformance tests: ours, and one that is added from outside the package."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import ray

import genrep_dist as gr
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import ConfigError, FailureKind, ProblemError
from genrep_dist.executors.base import Executor, Outcome
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.executors.registry import EXECUTORS
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.testing import ExecutorTests
from genrep_dist.testing.executors import RETRIES, Workload, make_experiment
from genrep_dist.units import StageName, Unit
from genrep_dist.workflow.context import Job


class ReversedExecutor:
    """Runs the units of each batch in reverse order: an executor that another package could provide."""

    name = "reversed"
    slots = 4
    memory_bytes = 2**40

    def __init__(self, resources: ResourcesSection, *, address: str | None = None) -> None:
        self._serial = SerialExecutor(resources.retries)
        self.address = address

    def slots_for(self, stage: StageName) -> int:
        return self.slots

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        units = iter(units)
        while batch := [unit for _, unit in zip(range(self.slots), units, strict=False)]:
            yield from self._serial.run(job, reversed(batch), actors=actors)

    def close(self) -> None:
        pass


class TestSerialExecutor(ExecutorTests):
    def make_executor(self, resources: ResourcesSection) -> Executor:
        return EXECUTORS.get("serial")(resources)


class TestReversedExecutor(ExecutorTests):
    def make_executor(self, resources: ResourcesSection) -> Executor:
        return ReversedExecutor(resources)


@pytest.fixture(scope="module")
def shared() -> Iterator[Executor]:
    """One executor for all tests, attached to one cluster, as its processes take seconds to start."""
    first = RayExecutor(ResourcesSection.model_validate({"workers": 2}))
    assert ray.is_initialized()
    executor = EXECUTORS.get("ray")(ResourcesSection.model_validate({"workers": 2, "retries": RETRIES}))
    yield executor
    executor.close()
    first.close()


@pytest.mark.ray
# Ray's own code, at start and at the end of its processes.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestRayExecutor(ExecutorTests):
    isolates_processes = True

    @pytest.fixture
    def executor(self, shared: Executor) -> Executor:
        return shared


@pytest.fixture
def _clean_registry() -> Iterator[None]:
    yield
    EXECUTORS.unregister("reversed")
    EXECUTORS.unregister("backwards")


@pytest.mark.usefixtures("_clean_registry")
def test_an_executor_from_outside_is_used_by_its_name(tmp_path: Path) -> None:
    EXECUTORS.register("reversed", ReversedExecutor)
    EXECUTORS.register("reversed", ReversedExecutor)  # a module that is imported twice
    assert list(EXECUTORS) == ["serial", "ray", "reversed"]
    tables = []
    for name in ("serial", "reversed"):
        (tmp_path / name).mkdir()
        run = gr.run(make_experiment(tmp_path / name), store=str(tmp_path / name / "store"), executor=name)
        tables.append(run.deletion().collect())
    assert tables[0].equals(tables[1])
    with pytest.raises(ConfigError, match="two executors have the same name"):
        EXECUTORS.register("reversed", SerialExecutor.from_resources)
    with pytest.raises(ConfigError, match=r"no executor 'slurm'[\s\S]*serial, ray, reversed"):
        gr.run(make_experiment(tmp_path / "serial"), store=str(tmp_path / "third"), executor="slurm")


@pytest.mark.usefixtures("_clean_registry")
def test_an_entry_point_is_used_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an installed package declared it."""
    point = EntryPoint("backwards", f"{__name__}:ReversedExecutor", EXECUTORS.group)
    monkeypatch.setattr("genrep_dist.registry.entry_points", lambda *, group: [point] if group == point.group else [])
    assert "backwards" in EXECUTORS
    made = EXECUTORS.get("backwards")(ResourcesSection.model_validate({}), address="here")
    assert isinstance(made, ReversedExecutor)
    assert made.address == "here"


class Eager(SerialExecutor):
    """Takes all units at once."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        yield from super().run(job, list(units), actors=actors)


class Forgetful(SerialExecutor):
    """Does not report failures."""

    def run(self, job: Job, units: Iterable[Unit], *, actors: bool = False) -> Generator[Outcome, None, None]:
        yield from (outcome for outcome in super().run(job, units, actors=actors) if outcome.failure is None)


def test_the_conformance_tests_find_broken_executors(tmp_path: Path) -> None:
    workload, suite = Workload(tmp_path), ExecutorTests()
    with pytest.raises(AssertionError):
        suite.test_units_are_taken_lazily(Eager(RETRIES), workload, actors=False)
    with pytest.raises(AssertionError):
        suite.test_a_failing_unit_does_not_stop_the_others(
            Forgetful(RETRIES), workload, actors=False, fault="fatal", kind=FailureKind.FATAL, error=ProblemError
        )
    with pytest.raises(AssertionError):  # no retries
        suite.test_a_retryable_failure_is_retried(SerialExecutor(0), workload, actors=False, fault="retryable")
