"""A cluster with two logical GPUs: units with GPUs share processes, and a worker with another copy of the package stops the run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import ConfigError
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.store import Store
from genrep_dist.units import Retraining, Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.prepare import prepare
from genrep_dist.workflow.retrain import RetrainUnit
from genrep_dist.workflow.train import TrainUnit
from tests.experiments import ROOT, experiment

pytestmark = [
    pytest.mark.usefixtures("cluster"),
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return prepare(experiment(), Store(str(tmp_path_factory.mktemp("store"))), [str(ROOT)]).job


def process(job: Job, unit: Unit) -> dict[str, float]:
    return {"pid": float(os.getpid()), "gpu": float(ray.get_gpu_ids()[0])}


def processes_of(executor: RayExecutor, job: Job, units: list[Unit]) -> dict[float, set[float]]:
    """The GPUs of each process."""
    found: dict[float, set[float]] = {}
    outcomes = list(executor.run(job, units))
    assert {outcome.unit for outcome in outcomes} == set(units)
    for outcome in outcomes:
        assert outcome.error is None
        found.setdefault(outcome.statistics["pid"], set()).add(outcome.statistics["gpu"])
    return found


RETRAINED = [RetrainUnit(0, (Retraining(f"{i:064d}", 0, "same", (i,)),)) for i in range(12)]
ORIGINALS = [TrainUnit(seed) for seed in range(12)]


@pytest.mark.parametrize(
    ("fields", "units", "slots"),
    [({}, RETRAINED, 2), ({"stages": {"train": {"num_gpus": 0.5, "workers": 1}}, "num_gpus": 0}, ORIGINALS, 1)],
    ids=["not declared: one each", "half of one"],
)
def test_units_share_as_many_processes_as_there_are_slots(job: Job, fields: dict[str, Any], units: list[Unit], slots: int) -> None:
    executor = RayExecutor(ResourcesSection.model_validate(fields), work=process)
    assert executor.slots_for(units[0].stage) == slots
    found = processes_of(executor, job, units)
    assert len(found) <= slots
    assert all(len(gpus) == 1 for gpus in found.values())


def never(job: Job, unit: Unit) -> dict[str, float]:
    (Path(job.store_uri) / "ran").touch()
    return {}


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_worker_with_another_copy_ends_the_run_at_once(job: Job, gpus: int, tmp_path: Path) -> None:
    executor = RayExecutor(ResourcesSection.model_validate({"num_gpus": gpus}), work=never)
    executor._copy = {**executor._copy, "digest": "0" * 64, "version": "0.0.9", "node": "head"}
    taken = []

    def units() -> Iterator[Unit]:
        for seed in range(100):
            taken.append(seed)
            yield TrainUnit(seed)

    with pytest.raises(ConfigError, match=r"expected: the driver's copy: genrep_dist 0\.0\.9, sources 000000000000[\s\S]*node head"):
        list(executor.run(replace(job, store_uri=str(tmp_path)), units()))
    assert len(taken) < 20
    assert not (tmp_path / "ran").exists()
