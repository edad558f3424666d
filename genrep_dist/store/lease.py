"""A lease: of several drivers that work on one experiment, one works and the others wait.

The lease is a sequence of numbered files. **The process that created the highest number holds the lease.** The store creates a file only
if none exists (O_EXCL, If-None-Match), so each number has one creator. The highest number is never deleted.

The holder rewrites its file every few seconds with an increasing count. A waiting process takes over with the next number if the count
does not change for TIMEOUT_SECONDS *of its own monotonic clock*. Clocks of different machines are never compared. If the holder ran on
this machine and its process is gone, there is no wait.

A lease avoids duplicate work; it is not a mutex. A process may sleep past its lease, wake up and continue. Concurrent writes must
therefore be harmless, and :meth:`Lease.confirm` must precede writes that are not.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from genrep_dist.errors import StoreError
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import lease_number, lease_record
from genrep_dist.store.processes import has_let_go, held_tokens, is_of_this_machine, this_process

RENEW_SECONDS = 5.0
TIMEOUT_SECONDS = 60.0
WATCH_SECONDS = 2 * RENEW_SECONDS + 2.0
"""A process of another machine that has not renewed its lease for this long is considered gone by :func:`lease_holder`."""
POLL_SECONDS = 0.5
NUMBERS_KEPT = 8
"""Numbers below the highest that are kept, so that a listing made while others come and go cannot miss all of them."""


class Lease:
    """The lease in ``folder`` of the store, as a context manager. Entering waits until no other process holds the lease.

    ``on_wait`` is called once, with a sentence that names the holder, if this process has to wait. The lease's ``number`` is above those of
    all earlier leases, and above ``above``. Entering raises StoreError if the store fails.
    """

    def __init__(
        self,
        objects: Objects,
        folder: str,
        on_wait: Callable[[str], object] = lambda text: None,
        *,
        above: int = 0,
        renew_seconds: float = RENEW_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._objects, self._folder, self._on_wait = objects, folder, on_wait
        self._renew_seconds, self._timeout_seconds = renew_seconds, timeout_seconds
        self._token = secrets.token_hex(16)
        self._above = above
        self._number = 0
        self._renewals = 0
        self._lost: StoreError | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lease:
        last_seen: tuple[int, Any, Any] | None = None
        since, reported = time.monotonic(), False
        while True:
            number, record = self._highest()
            if (number, record.get("token"), record.get("beat")) != last_seen:
                last_seen, since = (number, record.get("token"), record.get("beat")), time.monotonic()
            expired = time.monotonic() - since > self._timeout_seconds
            if not number or record.get("released") or has_let_go(record) or expired:
                if self._acquire(max(number, self._above) + 1):
                    return self
                continue
            if not reported:
                self._on_wait(f"waiting: another driver is at work, process {record.get('pid')} on {record.get('host')}")
                reported = True
            time.sleep(min(POLL_SECONDS, self._timeout_seconds / 4))

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # On a full disk the file stays. Processes of this machine can still see that this one does not hold the lease.
        with suppress(StoreError):
            if self._highest()[0] == self._number:
                self._write(released=True)
        held_tokens.discard(self._token)

    @property
    def number(self) -> int:
        """The number of the lease that this process holds, or held."""
        return self._number

    def is_held(self) -> bool:
        """Whether no other driver has taken over. Asks the store; if that fails, the last answer counts."""
        with suppress(StoreError):
            self.confirm()
        return self._lost is None

    def check(self) -> None:
        """StoreError if another driver is known to have taken over. Costs nothing; known RENEW_SECONDS after this process woke up."""
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """StoreError if another driver has taken over, as it does when this process has slept for long."""
        number, record = self._highest()
        # A record that was deleted, or is damaged and has no token, is written again by this process.
        if number > self._number or (number == self._number and record.get("token", self._token) != self._token):
            self._lost = StoreError(
                "another driver has taken over from this one, which did not renew its lease",
                where=f"{self._objects.uri}/{self._folder}",
                expected=f"lease {self._number} of this driver",
                got=f"lease {number}, of process {record.get('pid')} on {record.get('host')}",
                remedy="run the same command again: it waits for the other driver and reuses its results",
            )
            raise self._lost

    def _acquire(self, number: int) -> bool:
        """Create ``number``; whether this process created it and it is the highest."""
        self._number = number
        path = lease_record(self._folder, number)
        # First, because other threads of this process would take a file with an unknown token for that of a dead process.
        held_tokens.add(self._token)
        if not self._objects.create(path, self._record()) and self._read(path).get("token") != self._token:
            return False
        # A slow process may create a number that others have passed and deleted.
        paths = self._objects.list(self._folder)
        if max(map(lease_number, paths)) != number:
            self._objects.delete(path)
            return False
        for old in paths:
            if 0 < lease_number(old) < number - NUMBERS_KEPT:
                self._objects.delete(old)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._renew_seconds):
            self._renewals += 1
            # A temporary failure of the store is not fatal. A lost lease is.
            with suppress(StoreError):
                self.confirm()
                self._write()
            if self._lost is not None:
                return

    def _write(self, *, released: bool = False) -> None:
        self._objects.put(lease_record(self._folder, self._number), self._record(released=released))

    def _record(self, *, released: bool = False) -> bytes:
        record = {"token": self._token, "beat": self._renewals, "released": released, **this_process()}
        return (json.dumps(record, sort_keys=True) + "\n").encode()

    def _highest(self) -> tuple[int, dict[str, Any]]:
        return _highest(self._objects, self._folder)

    def _read(self, path: str) -> dict[str, Any]:
        return _read(self._objects, path)


def lease_holder(objects: Objects, folder: str, watch_seconds: float = WATCH_SECONDS) -> str:
    """The process that holds the lease in ``folder``, for people; empty if nobody does. Does not take the lease.

    Whether a process of another machine is alive shows within ``watch_seconds``, in which this waits for it to renew its lease.
    """
    number, record = _highest(objects, folder)
    if not number or record.get("released") or has_let_go(record):
        return ""
    holder = f"process {record.get('pid')} on {record.get('host')}"
    if is_of_this_machine(record):
        return holder
    began = time.monotonic()
    while time.monotonic() - began < watch_seconds:
        time.sleep(min(POLL_SECONDS, watch_seconds / 4))
        now = _highest(objects, folder)
        if now[1].get("released"):
            return ""
        if (now[0], now[1].get("beat")) != (number, record.get("beat")):
            return holder
    return ""


def _highest(objects: Objects, folder: str) -> tuple[int, dict[str, Any]]:
    """The highest number and its record; (0, {}) if there is none."""
    paths = objects.list(folder)
    if not paths:
        return 0, {}
    last = max(paths, key=lease_number)
    return lease_number(last), _read(objects, last)


def _read(objects: Objects, path: str) -> dict[str, Any]:
    """A record; empty if it is incomplete, because it is being written or its writer died."""
    try:
        record = json.loads(objects.get(path))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
