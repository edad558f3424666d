"""The Ray that `genrep run` starts lets nobody in without its user's own token; a cluster that is not there is an error."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    for command in (["plan", "--no-probe"], ["run"]):
        tried = [sys.executable, "-m", "genrep_dist", command[0], "smoke", *command[1:], "--store", str(tmp_path), "--address", "nowhere"]
        said = subprocess.run(tried, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert said.returncode == 1
        assert said.stderr.startswith("error: no Ray cluster can be reached")
        assert "got: nowhere" in said.stderr
        assert "Traceback" not in said.stderr
