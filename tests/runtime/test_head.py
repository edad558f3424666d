"""The watch on a cluster's head, with a socket in its place."""

from __future__ import annotations

import socket
import time

import pytest

from genrep_dist.runtime import head
from genrep_dist.runtime.head import HeadWatch


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(head, "SILENT_SECONDS", 0.2)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_head_that_goes_is_told_once_and_says_what_to_do(capfd: pytest.CaptureFixture[str], host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), 0), family=family)
    except OSError:
        pytest.skip(f"no {host} here")
    watch = HeadWatch(f"{host}:{listener.getsockname()[1]}")
    time.sleep(0.5)
    assert capfd.readouterr().err == ""
    listener.close()
    watch._thread.join(timeout=10)
    told = capfd.readouterr().err
    assert told.count("the head of the Ray cluster does not answer") == 1
    assert watch.address in told
    assert "run the same command there" in told
    watch.close()


def test_one_that_stays_is_not_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = HeadWatch(f"127.0.0.1:{listener.getsockname()[1]}")
        time.sleep(0.5)
        watch.close()
    assert capfd.readouterr().err == ""
