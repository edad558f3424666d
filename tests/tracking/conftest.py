from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import StoreError
from genrep_dist.tracking.mlflow_tracker import publish
from genrep_dist.tracking.server import check_server
from tests.tracking.examples import publication


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows another experiment: made once, because that takes seconds, and copied for each test."""
    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    publish(publication(problem="another", artifacts={}), tracking_uri=f"sqlite:///{path}", artifact_location=(path.parent / "a").as_uri())
    return path


@pytest.fixture
def place(fresh: Path, tmp_path: Path) -> dict[str, Any]:
    """Where to publish: the keyword arguments of ``publish``."""
    shutil.copyfile(fresh, tmp_path / "mlflow.db")
    return {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "artifact_location": (tmp_path / "artifacts").as_uri()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def server(place: dict[str, Any], tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [
        "mlflow",
        "server",
        "--backend-store-uri",
        place["tracking_uri"],
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield wait_for(f"http://127.0.0.1:{port}", process, tmp_path / "server.log")
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=120)


def wait_for(uri: str, process: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            check_server(uri, timeout_seconds=2)
        except StoreError:
            time.sleep(0.1)
        else:
            return uri
    raise AssertionError(log.read_text())
