from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import genrep_dist as gr
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import NonFiniteError, PlanError
from genrep_dist.executors.base import Executor
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.executors.serial import SerialExecutor
from genrep_dist.store import Store
from genrep_dist.units import Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.gradients import GradientUnit
from genrep_dist.workflow.kernels import KernelUnit
from genrep_dist.workflow.prepare import prepare, publish_inputs
from genrep_dist.workflow.train import TrainUnit
from tests.experiments import ROOT, experiment
from tests.toys import trainings

pytestmark = [
    pytest.mark.ray,
    # Ray's own code, at start and at the end of its processes.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One cluster for all tests, to which each executor attaches. So it is somebody else's to them, where tasks are tasks."""
    first = RayExecutor(ResourcesSection.model_validate({"workers": 2}))
    yield
    first.close()


@pytest.fixture(scope="module")
def ray_executor(session: None) -> Iterator[Executor]:
    executor = RayExecutor(ResourcesSection.model_validate({"retries": 8, "workers": 2}))
    yield executor
    executor.close()


def files(store: Path, folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted((store / folder).rglob("*")) if path.is_file()}


def ready(store: Path, **arguments: Any) -> Job:
    """The job of a toy experiment whose data lie in the store; nothing is trained."""
    prepared = prepare(experiment(**arguments), Store(str(store)), [str(ROOT)])
    publish_inputs(prepared)
    return prepared.job


def run(store: Path, executor: Executor, **arguments: Any) -> gr.Run:
    return gr.run(experiment(**arguments), store=str(store), executor=executor, search_path=[str(ROOT)])


def timeless(name: str, content: bytes) -> object:
    """The bytes of an array's file; a record without its seconds and the checksum of all its bytes."""
    if not name.endswith("manifest.json") and "/parts/" not in name:
        return content
    record = json.loads(content)
    assert record.pop("seconds", 1.0) > 0
    record.pop("checksum", None)
    return record


@pytest.mark.parametrize("num_classes", [2, 3])
def test_ray_and_serial_give_the_same_bytes(tmp_path: Path, ray_executor: Executor, num_classes: int) -> None:
    """Every artifact, and the public tables. (Manifests, part records and the ledger also hold seconds, which no two runs share.)"""
    fields: dict[str, Any] = {"options": {"num_classes": num_classes}, "resources": {"memory_budget": "64KiB"}}
    run(tmp_path / "ray", ray_executor, **fields)
    run(tmp_path / "serial", SerialExecutor(0), **fields)
    one, other = files(tmp_path / "ray", "artifacts"), files(tmp_path / "serial", "artifacts")
    assert one.keys() == other.keys()
    assert [name for name in one if timeless(name, one[name]) != timeless(name, other[name])] == []
    for name in ("summary.parquet", "deletion.parquet", "table.md"):
        assert (tmp_path / "ray/results/toy" / name).read_bytes() == (tmp_path / "serial/results/toy" / name).read_bytes()


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_trainings_that_fail_or_kill_their_process_change_nothing(tmp_path: Path, ray_executor: Executor, how: str) -> None:
    fields: dict[str, Any] = {
        "problem": "tests.toys:Counting",
        "methods": ["ntk-final/tracking", "random"],
        "deletion": {"fractions": [0.0, 0.1]},
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "hurt").mkdir()
    whole = run(tmp_path / "whole/store", SerialExecutor(0), options={"folder": str(tmp_path / "whole")}, **fields)
    options = {"folder": str(tmp_path / "hurt"), "every": 3, "how": how}
    hurt = run(tmp_path / "hurt/store", ray_executor, options=options, resources={"task_seconds": 1e-6}, **fields)
    assert hurt.deletion().collect().equals(whole.deletion().collect())
    assert trainings(tmp_path / "hurt") > trainings(tmp_path / "whole")


def test_an_error_of_ours_comes_back_as_itself_and_is_not_tried_again(tmp_path: Path, ray_executor: Executor) -> None:
    """A model that diverges does so again however often it is trained."""
    fields: dict[str, Any] = {"problem": "tests.toys:Linear", "recipe": {"learning_rate": 3e38}, "seeds": 1}
    outcomes = list(ray_executor.run(ready(tmp_path, **fields), [TrainUnit(0)]))
    assert isinstance(outcomes[0].error, NonFiniteError)
    assert "training diverged" in str(outcomes[0].error)
    assert outcomes[0].attempts == 1


def test_a_failing_actor_unit_is_reported_after_all_attempts(tmp_path: Path, ray_executor: Executor) -> None:
    job = ready(tmp_path)
    units = [GradientUnit(0, "ntk", 4, 0, 10), GradientUnit(1, "ntk", 4, 0, 10)]  # nothing was trained: there is no checkpoint
    outcomes = list(ray_executor.run(job, units, actors=True))
    assert {outcome.unit for outcome in outcomes} == set(units)
    assert all(type(outcome.error).__name__ == "NotCommittedError" for outcome in outcomes)
    assert all(outcome.attempts == 9 for outcome in outcomes)


def test_work_in_flight_is_bounded(tmp_path: Path, ray_executor: Executor) -> None:
    """The executor takes units from its source as it goes, not all at once."""
    job = ready(tmp_path)
    taken = 0

    def source() -> Iterator[TrainUnit]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield TrainUnit(0)

    ended = 0
    for outcome in ray_executor.run(job, source()):
        assert outcome.error is None
        ended += 1
        assert taken - ended <= 2 * ray_executor.slots
    assert ended == taken == 40


def blocked(job: Job, unit: Unit) -> dict[str, float]:
    """Notes its process. The first process of all waits in its first unit until a file `go` is there."""
    folder = Path(job.store_uri)
    (folder / "pids" / str(os.getpid())).touch()
    try:
        (folder / "slow").touch(exist_ok=False)
    except FileExistsError:
        return {"slow": 0.0, "pid": float(os.getpid())}
    while not (folder / "go").exists():
        time.sleep(0.01)
    return {"slow": 1.0, "pid": float(os.getpid())}


def living(folder: Path) -> int:
    return sum(psutil.pid_exists(int(path.name)) for path in (folder / "pids").iterdir())


@pytest.mark.usefixtures("session")
def test_a_slow_actor_holds_nobody_and_the_pool_shrinks_to_its_minimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty rows on two actors, of which one does not come back: the other one does the rest, and ends when it is idle for long."""
    monkeypatch.setattr("genrep_dist.executors.ray_executor.IDLE_SECONDS", 0.0)
    monkeypatch.setattr("genrep_dist.executors.ray_executor.RECOUNT_SECONDS", 0.2)
    (tmp_path / "pids").mkdir()
    job = replace(ready(tmp_path), store_uri=str(tmp_path))
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 2}), work=blocked)
    units = [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(30)]
    outcomes = []

    def go_when_one_is_left() -> None:
        deadline = time.monotonic() + 30
        while living(tmp_path) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        if living(tmp_path) == 1:
            (tmp_path / "one").touch()
        (tmp_path / "go").touch()

    for outcome in executor.run(job, units, actors=True):
        outcomes.append(outcome)
        if len(outcomes) == len(units) - 1:
            assert all(outcome.statistics["slow"] == 0 for outcome in outcomes)
            assert len({outcome.statistics["pid"] for outcome in outcomes}) == 1
            watcher = threading.Thread(target=go_when_one_is_left)
            watcher.start()
    watcher.join()
    assert outcomes[-1].statistics["slow"] == 1
    assert {outcome.unit for outcome in outcomes} == set(units)
    assert len(list((tmp_path / "pids").iterdir())) == 2
    assert (tmp_path / "one").exists()
    executor.close()
    wait_for_none_of(tmp_path)


def wait_for_none_of(folder: Path) -> None:
    """Wait until the noted processes have ended."""
    deadline = time.monotonic() + 30
    while living(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("session")
def test_the_next_stage_uses_the_actors_of_the_last_one_and_tasks_end_them(tmp_path: Path) -> None:
    jobs = []
    for name in ("one", "other"):
        (tmp_path / name / "pids").mkdir(parents=True)
        (tmp_path / name / "slow").touch()
        jobs.append(replace(ready(tmp_path / name), store_uri=str(tmp_path / name)))
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 2, "stages": {"kernels": {"num_cpus": 0.5}}}), work=blocked)
    gradients = [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(4)]

    def pids(job: Job, units: Sequence[Unit], *, actors: bool = True) -> set[float]:
        outcomes = list(executor.run(job, units, actors=actors))
        assert {outcome.unit for outcome in outcomes} == set(units)
        return {outcome.statistics["pid"] for outcome in outcomes}

    first = pids(jobs[0], gradients[:1])
    assert pids(jobs[0], gradients[:1]) == first
    assert pids(jobs[1], gradients[1:2]) == first, "units of another job, whose records are its own"
    assert {float(path.name) for path in (tmp_path / "other" / "pids").iterdir()} == first
    assert not pids(jobs[0], [KernelUnit(0, "ntk", 4, 0, 1, stored=False)]) & first, "other resources"
    pids(jobs[0], [TrainUnit(0)], actors=False)
    assert not [path for path in (tmp_path / "other" / "pids").iterdir() if psutil.pid_exists(int(path.name))]
    executor.close()


def second_waits(job: Job, unit: Unit) -> dict[str, float]:
    """The second unit waits for a file `go`."""
    assert isinstance(unit, GradientUnit)
    folder = Path(job.store_uri)
    (folder / f"unit-{unit.start}").touch()
    while unit.start == 1 and not (folder / "go").exists():
        time.sleep(0.01)
    return {}


@pytest.mark.usefixtures("session")
def test_an_actor_that_comes_when_all_units_are_taken_is_let_go(tmp_path: Path) -> None:
    """One of two places is taken by somebody else until the first actor has both units; then the second one starts."""
    holder: Any = ray.remote(num_cpus=1)(Holder).remote()
    ray.get(holder.there.remote())
    job = replace(ready(tmp_path), store_uri=str(tmp_path))

    def let_go() -> None:
        while not (tmp_path / "unit-1").exists():
            time.sleep(0.01)
        ray.kill(holder)
        time.sleep(3.0)  # about as long as an actor takes to start
        (tmp_path / "go").touch()

    aside = threading.Thread(target=let_go)
    aside.start()
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 2}), work=second_waits)
    outcomes = list(executor.run(job, [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(2)], actors=True))
    aside.join()
    assert [outcome.error for outcome in outcomes] == [None, None]


def dies(job: Job, unit: Unit) -> dict[str, float]:
    """Ends its process, but for the first attempt at the second unit, which raises."""
    assert isinstance(unit, GradientUnit)
    mark = Path(job.store_uri) / "raised"
    if unit.start == 1 and not mark.exists():
        mark.touch()
        raise ValueError("not yet")
    os._exit(1)


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("actors", [False, True])
def test_a_unit_has_crashed_when_each_of_its_attempts_did(tmp_path: Path, actors: bool) -> None:
    job = replace(ready(tmp_path), store_uri=str(tmp_path))
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 2, "retries": 1}), work=dies)
    outcomes = list(executor.run(job, [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(2)], actors=actors))
    assert {outcome.unit.label: outcome.crashed for outcome in outcomes} == {
        "gradients seed=0 ntk epoch=4 rows 0-1": True,
        "gradients seed=0 ntk epoch=4 rows 1-2": False,
    }
    assert all(outcome.attempts == 2 and outcome.error is not None for outcome in outcomes)


class Holder:
    """Somebody else's actor."""

    def there(self) -> bool:
        return True


@pytest.mark.usefixtures("session")
def test_no_more_actors_than_units_and_than_were_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    for name in ("slow", "go"):
        (tmp_path / name).touch()
    job = replace(ready(tmp_path), store_uri=str(tmp_path))
    stages = {"gradients": {"workers": 1}}
    for most, count in ((2, 1), (1, 5)):
        executor = RayExecutor(ResourcesSection.model_validate({"workers": 2, "stages": stages if most == 1 else {}}), work=blocked)
        assert (executor.slots_for("gradients"), executor.slots_for("kernels"), executor.slots) == (most, 2, 2)
        found = list(executor.run(job, [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(count)], actors=True))
        assert len({outcome.statistics["pid"] for outcome in found}) == 1
        assert len(found) == count


@pytest.mark.usefixtures("session")
def test_what_the_cluster_can_never_hold_is_refused_before_it_waits(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"resources.stages.retrain.num_gpus[\s\S]*1 CPU and 3 GPU[\s\S]*at most 2 CPU and 0 GPU"):
        gr.run(experiment(resources={"stages": {"retrain": {"num_gpus": 3}}}), store=str(tmp_path), search_path=[str(ROOT)])
    assert not (tmp_path / "artifacts").exists()
