from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from mlflow import MlflowClient

from genrep_dist.errors import StoreError
from genrep_dist.tracking.mlflow_tracker import publish
from genrep_dist.tracking.publication import method_runs
from genrep_dist.tracking.server import check_server, is_server, without_user
from tests.tracking.conftest import free_port
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
