"""The job script on a real local cluster, submitted as a user submits it."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tests.experiments import ROOT

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node on loopback with token authentication: (dashboard address, environment of the submitter)."""
    folder = tmp_path_factory.mktemp("ray")
    port, dashboard = free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}",  # as in an activated environment
    }
    environment.pop("RAY_ADDRESS", None)
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--block"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # its default is taken where another Ray runs
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        for _ in range(60):
            listed = subprocess.run([RAY, "job", "list", "--address", address], env=environment, capture_output=True, check=False)
            if listed.returncode == 0:
                break
            assert head.poll() is None, (folder / "head.log").read_text()
        else:
            raise AssertionError("the head node does not answer: " + (folder / "head.log").read_text())
        yield address, environment
    finally:
        # `ray start --block` ends its own processes on SIGTERM.
        head.terminate()
        head.wait(timeout=60)
        log.close()


def submit(cluster: tuple[str, dict[str, str]], *arguments: str) -> subprocess.CompletedProcess[str]:
    address, environment = cluster
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/evaluate.py", *arguments]
    for _ in range(30):
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
        # The head answers a little before it can take a job.
        if "No available agent" not in result.stdout + result.stderr:
            break
        time.sleep(2)
    return result


def test_a_submitted_job_runs_the_smoke_experiment(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    result = submit(cluster, "smoke", "--store", str(tmp_path / "store"))
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "retrain: 0 of" in log
    assert "ntk-final/tracking" in log
    assert "\x1b[2K" not in log, "a log has no cursor movements"
    summary = pl.read_parquet(tmp_path / "store/results/smoke/summary.parquet")
    assert summary["method"].to_list() == ["ntk-final/tracking", "ntk-final/surrogate", "tracincp", "random"]


def test_a_bad_experiment_fails_the_job(cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    result = submit(cluster, "smoke", "--store", str(tmp_path / "store"), "--set", "sedes=3")
    assert result.returncode != 0
    assert "did you mean seeds?" in result.stdout + result.stderr
