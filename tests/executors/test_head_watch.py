"""The watch on a cluster's head, with a socket in its place."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from genrep_dist.executors import head_watch
from genrep_dist.executors.head_watch import HeadWatch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(head_watch, "RENEW_SECONDS", 0.1)


@pytest.fixture(params=["127.0.0.1", "[::1]"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    host = str(request.param)
    try:
        opened = socket.create_server((host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip(f"no {host} here")
    with opened:
        yield opened


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def told(watch: HeadWatch, capfd: pytest.CaptureFixture[str]) -> str:
    watch._thread.join(timeout=10)
    text = capfd.readouterr().err
    assert text.count("the head of the Ray cluster is gone") == 1
    assert watch.address in text
    assert "same command there" in text
    watch.close()
    return text


def test_a_head_that_goes_is_told_once_and_says_what_to_do(capfd: pytest.CaptureFixture[str], listener: socket.socket) -> None:
    watch = HeadWatch(address(listener))
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
    listener.close()
    told(watch, capfd)


def test_a_head_that_is_started_again_is_told_of(
    capfd: pytest.CaptureFixture[str], listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody listens there all the time; but a connection was closed by the other end."""
    monkeypatch.setattr(head_watch, "RENEW_SECONDS", 60.0)
    watch = HeadWatch(address(listener))
    listener.accept()[0].close()
    told(watch, capfd)


def test_one_that_stays_is_not_told_of(capfd: pytest.CaptureFixture[str], listener: socket.socket) -> None:
    """Whether it is silent or talks."""
    watch = HeadWatch(address(listener))
    for _ in range(3):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SETTINGS")
            time.sleep(0.15)
    watch.close()
    assert capfd.readouterr().err == ""
