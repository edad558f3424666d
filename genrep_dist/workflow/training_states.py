"""The states of unfinished retrainings, as files of the store beside the ledger that the models will enter."""

from __future__ import annotations

import hashlib
import time

from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import LedgerPaths


class StoredState:
    """One file: the SHA-256 of the state, and the state. ``seconds``: the time between two of them."""

    def __init__(self, objects: Objects, path: str, seconds: float) -> None:
        self._objects, self._path, self._seconds, self._saved = objects, path, seconds, time.monotonic()

    def load(self) -> bytes | None:
        try:
            data = self._objects.get(self._path)
        except FileNotFoundError:
            return None
        digest, state = data[:64], data[64:]
        return state if hashlib.sha256(state).hexdigest().encode() == digest else None

    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= self._seconds

    def save(self, state: bytes) -> None:
        self._objects.put(self._path, hashlib.sha256(state).hexdigest().encode() + state)
        self._saved = time.monotonic()


class StoredStates:
    """The states of the packs of one unit of the training identity ``training``."""

    def __init__(self, objects: Objects, training: str, seconds: float) -> None:
        self._objects, self._paths, self._seconds = objects, LedgerPaths(training), seconds
        self._opened: list[str] = []

    def __call__(self, name: str) -> StoredState:
        path = self._paths.unfinished(hashlib.sha256(name.encode()).hexdigest())
        self._opened.append(path)
        return StoredState(self._objects, path, self._seconds)

    def delete(self) -> None:
        """Delete the states of all packs, whose models are in the ledger now."""
        for path in self._opened:
            if self._objects.exists(path):
                self._objects.delete(path)
