"""The quarantine: units that crash their process in every attempt. They are not run again until the user releases them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import UnitError
from genrep_dist.store import Store
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.records import reading_record
from genrep_dist.units import Unit

if TYPE_CHECKING:
    from genrep_dist.executors.base import Outcome

MAX_NAMED = 5
MAX_SAMPLES_NAMED = 20
Ids = npt.NDArray[np.int64]


class Quarantine:
    """The quarantine of one experiment, a record in the store.

    A unit with fewer than ``max_attempts`` recorded attempts, because an earlier run allowed fewer, is run again. A retraining is
    identified by its key, any other unit by the ``results`` digest of the experiment and its fields.
    """

    def __init__(self, store: Store, name: str, results: str, max_attempts: int) -> None:
        self._objects, self._path = store.objects, ExperimentPaths(name).quarantine
        self._results, self._max_attempts = results, max_attempts
        self._recorded = _read(self._objects, self._path)
        self._skipped: dict[str, dict[str, Any]] = {}

    def runnable(self, units: Iterable[Unit]) -> list[Unit]:
        """The units that are not in quarantine. The others are skipped in this run."""
        return [unit for unit in units if not self.contains(self._identity(unit))]

    def contains(self, identity: str) -> bool:
        """Whether a unit, or the retraining with this key, is in quarantine. If so, it counts as skipped in this run."""
        entry = self._recorded.get(identity)
        if entry is None or entry["attempts"] < self._max_attempts:
            return False
        self._skipped[identity] = entry
        return True

    def add(self, outcome: Outcome, train_ids: Ids) -> None:
        """Record the crashed unit of ``outcome``. ``train_ids`` (N,): ids of the training samples, in the order of rows."""
        relation, sample_ids = outcome.unit.samples(train_ids)
        entry = {
            "unit": outcome.unit.label,
            "samples": relation,
            "sample_ids": sample_ids,
            "attempts": outcome.attempts,
            "error": type(outcome.error).__name__,
        }
        identity = self._identity(outcome.unit)
        self._recorded[identity] = self._skipped[identity] = entry
        self._objects.put_json(self._path, self._recorded)

    def raise_if_skipped(self) -> None:
        """UnitError that names the units that this run skipped or added, if there are any."""
        if not self._skipped:
            return
        entries = list(self._skipped.values())
        raise UnitError(
            f"{len(entries)} units of work are in quarantine: each has crashed its process in all attempts. Everything that does not "
            "depend on them is done and kept",
            where=describe_units(entries),
            got=f"{entries[0]['error']} in {entries[0]['attempts']} attempts",
            remedy=f"inspect these samples, fix the cause, and run the same command with --retry-failed; or allow more attempts with "
            f"--set resources.retries={max(entry['attempts'] for entry in entries)}. Until then they are not run again "
            f"({self._objects.uri}/{self._path})",
        )

    def _identity(self, unit: Unit) -> str:
        return unit.ledger_key or hashlib.sha256(f"{self._results} {unit!r}".encode()).hexdigest()


def clear_quarantine(store: Store, name: str) -> bool:
    """Release all units of an experiment; whether there was a quarantine."""
    path = ExperimentPaths(name).quarantine
    found = store.objects.exists(path)
    store.objects.delete(path)
    return found


def read_quarantine(store: Store, name: str) -> list[dict[str, Any]]:
    """The units in quarantine: each has ``unit``, ``samples``, ``sample_ids``, ``attempts`` and ``error``."""
    return list(_read(store.objects, ExperimentPaths(name).quarantine).values())


def _read(objects: Objects, path: str) -> dict[str, dict[str, Any]]:
    """The recorded units by identity; CorruptError for a damaged record."""
    if not objects.exists(path):
        return {}
    with reading_record(objects, path):
        found: dict[str, dict[str, Any]] = objects.get_json(path)
        for entry in found.values():
            ids = entry["sample_ids"]
            types = [type(entry[name]) for name in ("unit", "samples", "error", "attempts")]
            if types != [str, str, str, int] or not isinstance(ids, list) or not all(isinstance(one, int) for one in ids):
                raise TypeError(f"not a unit in quarantine: {entry}")
    return found


def describe_units(entries: Sequence[dict[str, Any]]) -> str:
    """The first MAX_NAMED units, with their samples, as text."""
    named = [f"{entry['unit']} ({_describe_samples(entry)})" if entry["samples"] else str(entry["unit"]) for entry in entries[:MAX_NAMED]]
    more = f"; {len(entries) - MAX_NAMED} more" if len(entries) > MAX_NAMED else ""
    return "; ".join(named) + more


def _describe_samples(entry: dict[str, Any]) -> str:
    ids = entry["sample_ids"]
    more = f" and {len(ids) - MAX_SAMPLES_NAMED} more" if len(ids) > MAX_SAMPLES_NAMED else ""
    return f"{entry['samples']} {', '.join(map(str, ids[:MAX_SAMPLES_NAMED]))}{more}"
