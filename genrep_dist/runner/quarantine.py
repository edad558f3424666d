"""Units that end the process that works on them, every time: named, recorded in the store, and not tried again until they are released."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import UnitError
from genrep_dist.executors.base import Outcome
from genrep_dist.store import Store
from genrep_dist.units import Unit

MAX_NAMED = 5
Ids = npt.NDArray[np.int64]


class Quarantine:
    """The record ``experiments/<name>/quarantine.json`` of one experiment: unit to what is known of it.

    ``allowed`` are the attempts that a unit has in this run. One that has had as many already is held; one that has had fewer, since
    the run before allowed fewer, is tried again. A unit is known by ``question`` (what is computed) and what it does, a retraining
    by its key.
    """

    def __init__(self, store: Store, name: str, question: str, allowed: int) -> None:
        self._objects, self._path = store.objects, quarantine_path(name)
        self._question, self._allowed = question, allowed
        self._known: dict[str, dict[str, Any]] = self._objects.get_json(self._path) if self._objects.exists(self._path) else {}
        self._held: dict[str, dict[str, Any]] = {}

    def admit(self, units: Iterable[Unit]) -> list[Unit]:
        """Those that are to be run; the others are held."""
        return [unit for unit in units if not self.holds(self._identity(unit))]

    def holds(self, identity: str) -> bool:
        """Whether a unit, or the retraining of that key, has used up its attempts; if so this run goes without it."""
        entry = self._known.get(identity)
        if entry is None or entry["attempts"] < self._allowed:
            return False
        self._held[identity] = entry
        return True

    def add(self, outcome: Outcome, train_ids: Ids) -> None:
        """Hold the unit of ``outcome``, and record it at once; ``train_ids`` (N,) are the ids behind the rows of units."""
        identity = self._identity(outcome.unit)
        about, samples = outcome.unit.samples(train_ids)
        entry = {
            "unit": outcome.unit.label,
            "samples": about,
            "sample_ids": samples,
            "attempts": outcome.attempts,
            "error": type(outcome.error).__name__,
        }
        self._known[identity] = self._held[identity] = entry
        self._objects.put_json(self._path, self._known)

    def refuse(self) -> None:
        """UnitError that names the units that this run went without; nothing when there are none."""
        if not self._held:
            return
        entries = list(self._held.values())
        raise UnitError(
            f"{len(entries)} units of work are in quarantine: each has ended its process in all of its attempts. Everything that does "
            "not need them is done and kept",
            where=names(entries),
            got=f"{entries[0]['error']} in {entries[0]['attempts']} attempts",
            remedy=f"look at these samples, mend the cause, and run the same command with --retry-failed; or give them more attempts with "
            f"--set resources.retries={max(entry['attempts'] for entry in entries)}. Until then they are not tried again "
            f"({self._objects.uri}/{self._path})",
        )

    def _identity(self, unit: Unit) -> str:
        return unit.ledger_key or hashlib.sha256(f"{self._question} {unit!r}".encode()).hexdigest()


def release(store: Store, name: str) -> bool:
    """Forget the quarantine of an experiment; whether there was one."""
    path = quarantine_path(name)
    found = store.objects.exists(path)
    store.objects.delete(path)
    return found


def read_quarantine(store: Store, name: str) -> list[dict[str, Any]]:
    """What is recorded of the units in quarantine: of each ``unit``, ``samples``, ``sample_ids``, ``attempts`` and ``error``."""
    path = quarantine_path(name)
    return list(store.objects.get_json(path).values()) if store.objects.exists(path) else []


def names(entries: Sequence[dict[str, Any]]) -> str:
    """The units of some entries, with their samples; of many the first."""
    named = [f"{entry['unit']} ({_samples(entry)})" if entry["samples"] else str(entry["unit"]) for entry in entries[:MAX_NAMED]]
    more = f"; {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return "; ".join(named) + more


def quarantine_path(name: str) -> str:
    return f"experiments/{name}/quarantine.json"


def _samples(entry: dict[str, Any]) -> str:
    ids = entry["sample_ids"]
    more = f" and {len(ids) - 20} more" if len(ids) > 20 else ""
    return f"{entry['samples']} {', '.join(map(str, ids[:20]))}{more}"
