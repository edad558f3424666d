"""A node that joins while a pool of actors works: an actor that had no place gets one there, and units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiments import ROOT
from tests.faults.nodes import Nodes, wait_until

DRIVER = """
import sys
from dataclasses import replace
from pathlib import Path
from genrep_dist.executors.ray_executor import RayExecutor
from genrep_dist.config.resources import ResourcesSection
from genrep_dist.workflow.gradients import GradientUnit
from tests.executors.test_ray_executor import blocked, ready
address, folder = sys.argv[1:]
job = replace(ready(Path(folder)), store_uri=folder)
executor = RayExecutor(ResourcesSection.model_validate({"workers": 2}), address=address, work=blocked)
assert executor.slots_for("gradients") == 1, "so many fit at first"
units = [GradientUnit(0, "ntk", 4, start, start + 1) for start in range(6)]
outcomes = list(executor.run(job, units, actors=True))
assert {outcome.unit for outcome in outcomes} == set(units)
print([outcome.statistics["slow"] for outcome in outcomes])
"""


@pytest.mark.ray
def test_a_node_that_joins_gets_an_actor_and_its_units(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    with Nodes.running(cpus=(1,)) as nodes:
        command = [sys.executable, "-c", DRIVER, nodes.address, str(tmp_path)]
        with subprocess.Popen(
            command, cwd=ROOT, env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as driver:

            def processes() -> int:
                assert driver.poll() is None, driver.communicate()
                return len(list((tmp_path / "pids").iterdir()))

            wait_until(lambda: processes() == 1)
            nodes.add(1)
            wait_until(lambda: processes() == 2)
            (tmp_path / "go").touch()
            said, errors = driver.communicate(timeout=120)
            assert driver.returncode == 0, errors
    assert sorted(numbers(said)) == [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.strip().strip("[]").split(",")]
