"""A lease: of the drivers that want to work on one thing at once, one works and the others wait.

It rests on one ability of every place that a store may lie in: putting an object only where there is none (O_EXCL, If-None-Match).
The lease is a row of numbered objects, ``<folder>/<number>.json``. **Whoever created the highest number holds the lease.** Creation
succeeds once for each number, and the highest is never deleted, so that no two hold it. Its holder rewrites it every few seconds, with
a count that goes up. Who waits watches that count: if it stands still for PATIENCE_SECONDS *of the waiting process's own monotonic
clock*, the holder is taken for dead and the next number is created. No clock of one machine is ever compared with that of another. A
holder that is on this machine and whose process is gone is not waited for at all.

A lease saves work, and no more may be built on it: a process may sleep through its own lease, wake up and go on. What two drivers write
at once must be harmless by itself, and :meth:`Lease.confirm` comes before what is not.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from genrep_dist.errors import StoreError
from genrep_dist.store.objects import Objects

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.5
KEPT = 8
"""Numbers below the highest that are left lying: a listing that runs while others come and go cannot miss all of them."""

_held: set[str] = set()
"""Tokens of the leases that this process holds."""


class Lease:
    """The lease of ``folder``, a path below the store. A context manager: entering waits, leaving gives it back.

    ``waiting`` is told once, in a sentence, for whom this process waits. Entering raises StoreError when the place fails.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        waiting: Callable[[str], object] = lambda text: None,
        *,
        beat_seconds: float = BEAT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._objects, self._folder, self._waiting = objects, folder, waiting
        self._beat_seconds, self._patience_seconds = beat_seconds, patience_seconds
        self._token = secrets.token_hex(16)
        self._number = 0
        self._beats = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        watched: tuple[int, Any, Any] | None = None
        since, told = time.monotonic(), False
        while True:
            number, record = self._highest()
            if (number, record.get("token"), record.get("beat")) != watched:
                watched, since = (number, record.get("token"), record.get("beat")), time.monotonic()
            stale = time.monotonic() - since > self._patience_seconds
            if not number or record.get("released") or _is_gone(record) or stale:
                if self._take(number + 1):
                    return self
                continue
            if not told:
                self._waiting(f"another driver is at work here, process {record.get('pid')} on {record.get('host')}: waiting for its end")
                told = True
            time.sleep(min(POLL_SECONDS, self._patience_seconds / 4))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # On a disk that is full it stays as it is: this process is known not to hold it any more.
        with suppress(StoreError):
            if self._highest()[0] == self._number:
                self._write(released=True)
        _held.discard(self._token)

    def confirm(self) -> None:
        """StoreError when another driver has taken over, as it does after this one has slept for long."""
        number, record = self._highest()
        if number != self._number or record.get("token") != self._token:
            raise StoreError(
                "another driver has taken over from this one, which had given no sign of life",
                where=f"{self._objects.uri}/{self._folder}",
                expected=f"lease {self._number}, this driver's",
                got=f"lease {number}, of process {record.get('pid')} on {record.get('host')}",
                remedy="nothing is lost: run the same command again, it waits for the other driver and takes what is done",
            )

    def _take(self, number: int) -> bool:
        """Create ``number``; whether it is this process's, and the highest."""
        self._number = number
        path = self._path(number)
        _held.add(self._token)  # before others can see it, who would take a lease that its own process does not know for a dead one's
        if not self._objects.create(path, self._record()) and self._read(path).get("token") != self._token:
            return False
        # A slow process may create a number that others have long passed and removed.
        paths = self._paths()
        if max(map(_number, paths)) != number:
            self._objects.delete(path)
            return False
        for old in paths:
            if _number(old) < number - KEPT:
                self._objects.delete(old)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return True

    def _keep(self) -> None:
        while not self._stop.wait(self._beat_seconds):
            self._beats += 1
            # A place that fails for a while is no reason to end: who has lost the lease learns it from confirm().
            with suppress(StoreError):
                if self._highest()[0] != self._number:
                    return
                self._write()

    def _write(self, *, released: bool = False) -> None:
        self._objects.put(self._path(self._number), self._record(released=released))

    def _record(self, *, released: bool = False) -> bytes:
        record = {"token": self._token, "beat": self._beats, "released": released, "host": socket.gethostname(), **_here()}
        return (json.dumps(record, sort_keys=True) + "\n").encode()

    def _highest(self) -> tuple[int, dict[str, Any]]:
        """The highest number, 0 where there is none, and what its holder says."""
        paths = self._paths()
        if not paths:
            return 0, {}
        last = max(paths, key=_number)
        return _number(last), self._read(last)

    def _paths(self) -> list[str]:
        return [path for path in self._objects.list(self._folder) if path.endswith(".json")]

    def _read(self, path: str) -> dict[str, Any]:
        """What is written there; nothing when it is being written, or its writer died in the middle."""
        try:
            record = json.loads(self._objects.get(path))
        except (FileNotFoundError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:012d}.json"


def _number(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(".json"))


def _here() -> dict[str, Any]:
    """What tells this process from every other one, on this machine and until it starts again."""
    return {"pid": os.getpid(), "machine": _machine(), "started": _started(os.getpid())}


def _is_gone(record: dict[str, Any]) -> bool:
    """Whether the holder is known to be dead: it was a process of this machine, and is not there any more."""
    machine, pid = record.get("machine"), record.get("pid")
    if not machine or machine != _machine() or not isinstance(pid, int):
        return False
    if pid == os.getpid() and record.get("started") == _started(pid):
        return record.get("token") not in _held
    return _started(pid) != record.get("started")


def _machine() -> str:
    """The boot of the kernel that runs, and the namespace in which its process numbers hold; empty where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process began, in ticks since the boot; empty when there is no such process (a zombie is none)."""
    try:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
