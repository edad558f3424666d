"""The Ray that `genrep run` starts lets nobody in without its user's own token, and its processes serve all stages; a cluster that is not
there is an error."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import UnitError
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.units import Unit
from genrep_dist.workflow.context import Job
from genrep_dist.workflow.gradients import GradientUnit
from genrep_dist.workflow.train import TrainUnit
from tests.executors.test_ray_executor import ready
from tests.experiments import ROOT

CODE = """
import sys
import ray
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.config.resources import ResourcesSection
executor = RayExecutor(ResourcesSection.model_validate({"workers": 1}))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.readline()
executor.close()
"""
INTRUDER = "import ray, sys; ray.init(address=sys.argv[1]); print('inside', ray.cluster_resources())"


@pytest.mark.ray
def test_nobody_attaches_without_the_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        assert re.fullmatch(r"[\d.]+:\d+", address)
        token = tmp_path / ".ray" / "auth_token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600

        def attach(**more: str) -> subprocess.CompletedProcess[str]:
            tried = [sys.executable, "-c", INTRUDER, address]
            return subprocess.run(tried, env=environment | more, capture_output=True, text=True, check=False, timeout=120)

        owner = attach(RAY_AUTH_MODE="token")
        assert "inside" in owner.stdout, owner.stderr
        careless = attach(RAY_AUTH_MODE="disabled", HOME=str(tmp_path / "nobody"))
        assert careless.returncode != 0
        assert "inside" not in careless.stdout
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        assert cluster.wait(timeout=60) == 0


def test_a_cluster_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose processors are all taken, where Ray raises a bare Exception."""

    def slow(**options: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", slow)
    with pytest.raises(UnitError, match=r"(?s)Ray did not start on this machine.*timed out during startup.*--serial"):
        RayExecutor(ResourcesSection.model_validate({}))


def noted(job: Job, unit: Unit) -> dict[str, float]:
    """The process. The first attempt at seed 1 raises, and the one at seed 2 ends its process."""
    if unit.seed:
        try:
            (Path(job.store_uri) / f"seed-{unit.seed}").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            if unit.seed == 2:
                os._exit(1)
            raise ValueError("not yet")
    return {"pid": float(os.getpid())}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_process_serves_all_stages_and_outlives_an_error(tmp_path: Path) -> None:
    """Where nobody else waits for it. After the error of a task it would be used again, so it is here; after that of an actor never."""
    job = replace(ready(tmp_path, seeds=1), store_uri=str(tmp_path))
    executor = RayExecutor(ResourcesSection.model_validate({"workers": 1, "retries": 1}), work=noted)

    def process(unit: Unit, *, actors: bool, attempts: int = 1) -> float:
        (outcome,) = executor.run(job, [unit], actors=actors)
        assert (outcome.error, outcome.attempts) == (None, attempts)
        return outcome.statistics["pid"]

    first = process(TrainUnit(0), actors=False)
    assert process(GradientUnit(0, "ntk", 4, 0, 10), actors=True) == first
    assert process(TrainUnit(1), actors=False, attempts=2) == first
    second = process(TrainUnit(2), actors=False, attempts=2)
    assert second != first
    (tmp_path / "seed-1").unlink()
    assert process(GradientUnit(1, "ntk", 4, 0, 10), actors=True, attempts=2) not in (first, second)
    executor.close()


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    for command in (["plan", "--no-probe"], ["run"]):
        tried = [sys.executable, "-m", "genrep_dist", command[0], "smoke", *command[1:], "--store", str(tmp_path), "--address", "nowhere"]
        said = subprocess.run(tried, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert said.returncode == 1
        assert said.stderr.startswith("error: no Ray cluster can be reached")
        assert "got: nowhere" in said.stderr
        assert "Traceback" not in said.stderr
