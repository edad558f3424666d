from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from genrep_dist.errors import StoreError
from genrep_dist.tracking.mlflow_tracker import publish
from genrep_dist.tracking.publication import method_runs
from genrep_dist.tracking.server import check_server, is_server, without_user
from tests.tracking.examples import publication


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_refusal_is_an_answer(refusing: str) -> None:
    check_server(refusing)


def test_silence_is_an_error_without_the_password() -> None:
    started = time.monotonic()
    with pytest.raises(StoreError, match="does not answer") as caught:
        check_server(f"http://user:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 5


def test_what_is_no_server_is_not_asked() -> None:
    check_server("sqlite:////nowhere/mlflow.db")
    assert not is_server("postgresql://host/db")
    assert is_server("https://tracking.example/prefix")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("postgresql://me:se@cret@host/db", "postgresql://host/db"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
    ],
)
def test_addresses_are_shown_without_passwords(uri: str, shown: str) -> None:
    assert without_user(uri) == shown


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
            process.wait(timeout=30)


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


def test_publishes_to_a_server(server: str) -> None:
    made = publication()
    link = publish(made, tracking_uri=server)
    assert publish(made, tracking_uri=server) == link
    assert link.hint == f"{server}/#/experiments/{link.experiment_id}/runs/{link.run_id}"
    client = MlflowClient(tracking_uri=server)
    assert len(client.search_runs([link.experiment_id])) == 3
    for run in method_runs(made):
        for name in {m.name for m in run.measurements}:
            logged = {(m.step, m.value) for m in client.get_metric_history(link.runs[run.method], name)}
            assert logged == {(m.step, m.value) for m in run.measurements if m.name == name}
    assert {entry.path for entry in client.list_artifacts(link.run_id)} == {"config.yaml", "figures", "report.html"}
