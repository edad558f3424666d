"""The job script on a real local cluster, submitted as a user submits it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

import genrep_dist as gr
from genrep_dist.runner.heartbeat import read_state
from genrep_dist.store import Store
from tests.experiments import ROOT, experiment_file
from tests.toys import trainings

pytestmark = [
    pytest.mark.ray,
    # MLflow's own models, with a newer SQLAlchemy.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Cluster:
    """``environment``: of the submitter; ``metrics``: where Prometheus would read; ``gcs``: where drivers attach."""

    address: str
    gcs: str
    environment: dict[str, str]
    metrics: str

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([RAY, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node on loopback with token authentication."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # the paths of Ray's sockets in it must be short
    port, dashboard, metrics = free_port(), free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_metrics_report_interval_ms": "500",
        "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}",  # as in an activated environment
    }
    environment.pop("RAY_ADDRESS", None)
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", "--block"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    command += [f"--metrics-export-port={metrics}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # its default is taken where another Ray runs
    log = (folder / "head.log").open("wb")
    head = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    made = Cluster(address, f"127.0.0.1:{port}", environment, f"http://127.0.0.1:{metrics}/metrics")
    try:
        for _ in range(60):
            if made.ray("job", "list").returncode == 0:
                break
            assert head.poll() is None, (folder / "head.log").read_text()
        else:
            raise AssertionError("the head node does not answer: " + (folder / "head.log").read_text())
        yield made
    finally:
        # `ray start --block` ends its own processes on SIGTERM.
        head.terminate()
        head.wait(timeout=60)
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: Cluster, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = ["job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", *options, "--"]
    for _ in range(30):
        result = cluster.ray(*command, "python", "jobs/evaluate.py", *arguments)
        # The head answers a little before it can take a job.
        if "No available agent" not in result.stdout + result.stderr:
            break
        time.sleep(2)
    return result


def test_a_submitted_job_runs_the_smoke_experiment(cluster: Cluster, tmp_path: Path) -> None:
    about = ("--submission-id", "smoke_1", "--metadata-json", json.dumps({"git_commit": "0123abc"}))
    result = submit(cluster, "smoke", "--store", str(tmp_path / "store"), options=about)
    log = result.stdout + result.stderr
    assert result.returncode == 0, log
    assert "retrain: 0 of" in log
    assert "doctor: seed 0, before the retrainings: all" in log
    assert "ntk-final/tracking" in log
    assert "\x1b[2K" not in log, "a log has no cursor movements"
    summary = pl.read_parquet(tmp_path / "store/results/smoke/summary.parquet")
    assert summary["method"].to_list() == ["ntk-final/tracking", "ntk-final/surrogate", "tracincp", "random"]
    manifest = gr.open_run(str(tmp_path / "store"), "smoke").manifest()
    assert manifest is not None
    assert manifest["provenance"] == {"submission_id": "smoke_1", "git_commit": "0123abc"}
    tags = MlflowClient(tracking_uri=manifest["tracking"]["uri"]).get_run(manifest["tracking"]["run_id"]).data.tags
    assert (tags["genrep.submission_id"], tags["genrep.git_commit"]) == ("smoke_1", "0123abc")


def test_a_job_whose_results_would_be_lost_is_refused_and_fails(cluster: Cluster) -> None:
    result = submit(cluster, "smoke")
    assert result.returncode != 0
    assert "a relative --store in a Ray job" in result.stdout + result.stderr
    assert "--store s3://bucket/prefix" in result.stdout + result.stderr


def test_a_plan_is_checked_against_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genrep_dist", "plan", "smoke", "--no-probe", "--store", str(tmp_path), "--address", cluster.gcs]
    more = ["--set", "resources.stages={retrain: {min_workers: 5}}"]
    refused = subprocess.run([*command, *more], cwd=ROOT, env=cluster.environment, capture_output=True, text=True, check=False, timeout=120)
    assert refused.returncode == 1
    assert "where: resources.stages.retrain.min_workers" in refused.stderr
    assert "got: room for 2 on 1 nodes" in refused.stderr


def test_a_stopped_job_says_how_to_go_on_and_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    """And while it runs its numbers are there for Prometheus."""
    file = experiment_file(
        tmp_path / "toy.yaml",
        "tests.toys:Counting",
        {"folder": str(tmp_path)},
        methods=["ntk-final/target", "random"],
        resources={"task_seconds": 0.05},
    )
    store = Store(str(tmp_path / "store"))
    (tmp_path / "slow").touch()
    submitted = submit(cluster, str(file), "--store", store.uri, options=("--no-wait", "--submission-id", "long_1"))
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 120
    shown = ""
    while trainings(tmp_path) < 4 or 'stage="train"' not in shown:
        assert time.monotonic() < deadline, cluster.ray("job", "logs", "long_1").stdout + shown[-2000:]
        time.sleep(0.3)
        with urllib.request.urlopen(cluster.metrics, timeout=10) as answer:
            shown = "\n".join(line for line in answer.read().decode().splitlines() if line.startswith("ray_genrep_"))
    assert re.search(r'ray_genrep_units\{.*experiment="toy".*state="done".*\} 2\.0', shown), shown
    cluster.ray("job", "stop", "long_1")
    assert "STOPPED" in cluster.ray("job", "status", "long_1").stdout.upper()
    log = cluster.ray("job", "logs", "long_1").stdout
    assert "SIGTERM: stopping" in log
    assert "done and kept: train 2 of 2" in log
    state = read_state(store, "toy")
    assert state is not None
    assert state.state == "stopped"

    (tmp_path / "slow").unlink()
    command = re.search(r"^to resume: (.*)$", log, re.MULTILINE)
    assert command is not None, log
    assert command[1].startswith("ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/evaluate.py ")
    done = cluster.ray(*shlex.split(command[1])[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 2 of 2 units done before" in done.stdout
