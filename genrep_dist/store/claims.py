"""Claims: of several drivers that work on one store, each trains what no other one is training.

Different experiments share originals and retrained models, and may run at the same time. Before a driver trains, it claims by name what
the store lacks and no living driver has claimed. It waits for the rest only when it holds no claim itself, so that no two drivers wait for
each other. One driver at a time claims: a lease of a few milliseconds.

A claim is renewed every few seconds and ends with its driver, as a lease does (:mod:`genrep_dist.store.lease`). It saves work and is no
mutex: what two drivers train at once is equal, and written to the same place.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from genrep_dist.errors import StoreError
from genrep_dist.store.lease import RENEW_SECONDS, TIMEOUT_SECONDS, Lease
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import CLAIMS, CLAIMS_LEASE, claim_record, claimed_names, is_claim
from genrep_dist.store.processes import has_let_go, held_tokens, this_process


class Claims:
    """What this process claims in a store for the experiment ``owner``, whose lease it holds: an earlier driver's claims are void."""

    def __init__(
        self, objects: Objects, owner: str, *, renew_seconds: float = RENEW_SECONDS, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._objects, self._owner = objects, owner
        self._renew_seconds, self._timeout_seconds = renew_seconds, timeout_seconds
        self._seen: dict[str, tuple[int, float]] = {}
        """The last count of each other claim, and since when it has not changed, by this process's clock."""

    @contextmanager
    def take(self, names: Iterable[str]) -> Iterator[set[str]]:
        """Claim those of ``names`` that no other living driver has claimed, until the context ends. Raises StoreError."""
        names = set(names)
        if not names:
            yield set()
            return
        token, stop = secrets.token_hex(16), threading.Event()
        held_tokens.add(token)
        renewing = threading.Thread(target=self._renew, args=(token, stop), name="claims", daemon=True)
        try:
            with Lease(self._objects, CLAIMS_LEASE):
                others = self._claimed_by_others()
                mine = {name for name in names if _short(name) not in others}
                if mine:
                    self._objects.put(claimed_names(token), "\n".join(sorted(map(_short, mine))).encode())
                    self._write(token, 0)
            if mine:
                renewing.start()
            yield mine
        finally:
            stop.set()
            if renewing.ident is not None:
                renewing.join()
            held_tokens.discard(token)
            # What is left behind ends as the claim of a process that is gone does.
            with suppress(StoreError):
                self._delete(token)

    def holders(self) -> list[str]:
        """The processes of the other living claims, for people."""
        return [f"process {record.get('pid')} on {record.get('host')}" for _, record in self._others()]

    def _claimed_by_others(self) -> set[str]:
        found: set[str] = set()
        for token, _ in self._others():
            with suppress(FileNotFoundError):
                found.update(self._objects.get(claimed_names(token)).decode(errors="replace").split())
        return found

    def _others(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Token and record of each other living claim. Those of drivers that are gone are deleted."""
        for path in self._objects.list(CLAIMS):
            if not is_claim(path):
                continue
            try:
                record = json.loads(self._objects.get(path))
                token, beat = str(record["token"]), int(record["beat"])
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):  # it is being written, or its writer died
                token, beat, record = path.removeprefix(f"{CLAIMS}/").removesuffix(".json"), 0, {}
            if token in held_tokens and record.get("owner") == self._owner:
                continue
            last = self._seen.get(token)
            if last is None or last[0] != beat:
                last = self._seen[token] = beat, time.monotonic()
            if record.get("owner") == self._owner or has_let_go(record) or time.monotonic() - last[1] > self._timeout_seconds:
                self._delete(token)
                continue
            yield token, record

    def _renew(self, token: str, stop: threading.Event) -> None:
        beat = 0
        while not stop.wait(self._renew_seconds):
            beat += 1
            # A temporary failure of the store is not fatal: at worst, another driver trains the same.
            with suppress(StoreError):
                self._write(token, beat)

    def _write(self, token: str, beat: int) -> None:
        record = {"token": token, "beat": beat, "owner": self._owner, **this_process()}
        self._objects.put(claim_record(token), (json.dumps(record, sort_keys=True) + "\n").encode())

    def _delete(self, token: str) -> None:
        self._objects.delete(claim_record(token))
        self._objects.delete(claimed_names(token))


def _short(name: str) -> str:
    """A name in few bytes: claims can be of a hundred thousand models."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]
