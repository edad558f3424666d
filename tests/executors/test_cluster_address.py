"""A wrong address of a Ray cluster is an error of ours within seconds, whatever listens there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from genrep_dist.errors import ConfigError
from genrep_dist.executors import cluster_address
from genrep_dist.executors.cluster_address import check_cluster, parse_endpoint
from tests.experiments import ROOT, experiment_file

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return address_of(server)


def answer(server: socket.socket, data: bytes) -> threading.Thread:
    """Reads one request on one connection, sends ``data`` and closes it."""

    def serve() -> None:
        connection, _ = server.accept()
        with closing(connection):
            connection.recv(4096)
            connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head:6379", ("head", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
    ],
)
def test_addresses(address: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(address, "--address") == endpoint


@pytest.mark.parametrize("address", ["nowhere", "", ":6379", "head:", "head:x", "head:70000", "http://head:8265", "ray://head"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster can be reached") as caught:
        check_cluster(address, "RAY_ADDRESS")
    assert caught.value.where == "RAY_ADDRESS"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_nothing_listens(scheme: str) -> None:
    with pytest.raises(ConfigError, match="refused"):
        check_cluster(scheme + closed_address(), "--address")


def test_a_host_without_an_address() -> None:
    with pytest.raises(ConfigError, match="no Ray cluster can be reached"):
        check_cluster("no-such-host.invalid:6379", "--address")


def test_a_process_that_never_answers(listening: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, or hangs: the system accepts connections for it."""
    monkeypatch.setattr(cluster_address, "ANSWER_SECONDS", 0.2)
    with pytest.raises(ConfigError, match="does not answer"):
        check_cluster(address_of(listening), "--address")


def test_a_look_up_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()
    monkeypatch.setattr(cluster_address, "LIMIT_SECONDS", 0.1)
    monkeypatch.setattr(cluster_address, "_fault", lambda host, port: "" if stop.wait(10) else "late")
    with pytest.raises(ConfigError, match=r"no answer within 0\.1 seconds"):
        check_cluster("head:6379", "--address")
    stop.set()


@pytest.mark.parametrize(
    ("data", "fault"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "another service"), (b"", "closes the connection"), (SETTINGS, "")]
)
def test_what_answers(listening: socket.socket, data: bytes, fault: str) -> None:
    thread = answer(listening, data)
    try:
        if fault:
            with pytest.raises(ConfigError, match=fault):
                check_cluster(address_of(listening), "--address")
        else:
            assert check_cluster(address_of(listening), "--address") == listening.getsockname()
    finally:
        thread.join(timeout=10)


def test_the_limits_are_below_ten_seconds() -> None:
    assert cluster_address.LIMIT_SECONDS < 10
    assert cluster_address.CONNECT_SECONDS + cluster_address.ANSWER_SECONDS < cluster_address.LIMIT_SECONDS


def test_a_run_at_a_dead_address_ends(tmp_path: Path) -> None:
    """Through the command, with RAY_ADDRESS."""
    file = experiment_file(tmp_path / "toy.yaml", methods=["random"], seeds=1)
    environment = os.environ | {"RAY_ADDRESS": closed_address(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "genrep_dist", "run", str(file), "--store", str(tmp_path / "store")]
    began = time.monotonic()
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert said.returncode == 1
    assert "no Ray cluster can be reached" in said.stderr
    assert "where: RAY_ADDRESS" in said.stderr
    assert "Traceback" not in said.stderr
    assert time.monotonic() - began < 60
