"""A lease: at most one holder, by whatever clocks and deaths."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import StoreError
from genrep_dist.store.lease import NUMBERS_KEPT, Lease
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import lease_number
from tests.experiments import ROOT
from tests.store.s3_server import BUCKET, S3Server


def quick(objects: Objects, waiting: Callable[[str], object] = lambda text: None) -> Lease:
    return Lease(objects, "lease", waiting, renew_seconds=0.05, timeout_seconds=0.5)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server.running() as running:
        yield running


@pytest.fixture(params=["folder", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    if request.param == "folder":
        return Objects(str(tmp_path))
    server: S3Server = request.getfixturevalue("server")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return Objects(f"s3://{BUCKET}/{tmp_path.name}")


def hold_briefly(lease: Lease) -> None:
    """Enter and leave, so that no thread goes on renewing the lease after its test."""
    with lease:
        pass


def numbers(objects: Objects) -> list[int]:
    return [lease_number(path) for path in objects.list("lease")]


def foreign(objects: Objects, number: int, **record: Any) -> None:
    """A lease of a process on another machine."""
    there = {"token": "theirs", "beat": 0, "released": False, "host": "elsewhere", "pid": 1, "machine": "another", "started": "1"}
    objects.put_json(f"lease/{number:012d}.json", there | record)


def test_one_at_a_time(objects: Objects) -> None:
    """Many that want it at once: nobody is in while another is, and everybody gets it."""
    inside, overlaps, entered = [0], [0], [0]

    def work() -> None:
        for _ in range(2):
            with quick(objects) as held:
                inside[0] += 1
                overlaps[0] += inside[0] > 1
                entered[0] += 1
                time.sleep(0.01)
                held.confirm()
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (entered[0], overlaps[0]) == (8, 0)
    assert len(numbers(objects)) <= NUMBERS_KEPT + 1
    assert max(numbers(objects)) == 8


def test_a_holder_that_beats_keeps_it_however_clocks_jump(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    with quick(objects):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        waiting = threading.Thread(target=lambda: hold_briefly(quick(objects, waits.append)), daemon=True)
        waiting.start()
        time.sleep(1.5)
        assert waiting.is_alive()
        assert len(waits) == 1
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_who_gives_no_sign_of_life_is_followed(objects: Objects) -> None:
    """Its process is on another machine, so that only its silence is known; and it is told when it comes back."""
    foreign(objects, 3, beat=17)
    began, waits = time.monotonic(), list[str]()
    with quick(objects, waits.append) as held:
        assert time.monotonic() - began >= 0.5
        held.confirm()
    assert waits == ["waiting: another driver is at work, process 1 on elsewhere"]
    assert max(numbers(objects)) == 4


def test_a_sleeper_that_was_passed_is_told(objects: Objects) -> None:
    sleeper = Lease(objects, "lease", renew_seconds=3600, timeout_seconds=3600)
    with sleeper:
        sleeper.confirm()
        foreign(objects, 2)
        with pytest.raises(StoreError, match="another driver has taken over"):
            sleeper.confirm()
    assert json.loads(objects.get("lease/000000000002.json"))["token"] == "theirs", "and it gives back nothing that is not its own"


def test_a_number_that_others_have_passed_is_not_the_lease(objects: Objects) -> None:
    """Whoever was slow may create it, and holds nothing by it."""
    foreign(objects, 20, released=True)
    late = quick(objects)
    assert not late._acquire(5)
    assert numbers(objects) == [20]
    with late:
        assert max(numbers(objects)) == 21


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_torn_record_is_waited_for_and_then_followed(objects: Objects, torn: bytes) -> None:
    objects.put("lease/000000000001.json", torn)
    with quick(objects) as held:
        held.confirm()
    assert max(numbers(objects)) == 2


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    code = f"""
import os, signal
from genrep_dist.store.lease import Lease
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import lease_number
Lease(Objects({str(tmp_path)!r}), "lease").__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert ended.returncode == -9
    began, waits = time.monotonic(), list[str]()
    with Lease(Objects(str(tmp_path)), "lease", waits.append):
        assert time.monotonic() - began < 5
    assert waits == []


def test_another_thread_of_this_process_is_waited_for(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))
    with quick(objects):
        waiting = threading.Thread(target=lambda: hold_briefly(quick(objects)), daemon=True)
        waiting.start()
        waiting.join(timeout=1.0)
        assert waiting.is_alive()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_what_a_full_disk_did_not_take_back_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Objects(str(tmp_path))
    held = Lease(objects, "lease")
    held.__enter__()

    def full(*_arguments: Any) -> None:
        raise StoreError("a file cannot be written")

    monkeypatch.setattr(objects, "put", full)
    held.__exit__(None, None, None)
    monkeypatch.undo()
    waits: list[str] = []
    with Lease(objects, "lease", waits.append):
        assert waits == []
