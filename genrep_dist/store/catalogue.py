"""The experiments of a store, and the disk space of its parts, from its files alone. No plan is made and no code is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.filesystem import FOLDER, what_is_at
from genrep_dist.store.paths import (
    ARTIFACTS,
    CLAIMS,
    DAMAGE_NOTES,
    DATA,
    EXPERIMENTS,
    LEDGERS,
    ORIGINALS,
    REFUSED,
    RESULTS,
    ExperimentPaths,
    ResultPaths,
    recorded_names,
    store_part,
)
from genrep_dist.store.publications import Publications
from genrep_dist.store.store import Store
from genrep_dist.store.uris import parse_uri

_WHAT = {
    EXPERIMENTS: "records of the experiments",
    RESULTS: "tables and reports",
    LEDGERS: "outputs of the retrained models",
    DATA: "training and test samples",
    REFUSED: "damaged files, moved away",
    DAMAGE_NOTES: "notes of damaged files",
    CLAIMS: "what running drivers train",
}
_ARTIFACTS = {
    "train": "original models, with checkpoints",
    "features": "gradients of the training samples",
    "gram": "kernels, train x train",
    "kernel": "kernels, train x test",
    "attribution": "scores of the methods",
    "diagonal": "kernels of samples with themselves",
    "term": "products of kernels and importances",
}
_OTHER = "MLflow"


@dataclass(frozen=True)
class ExperimentEntry:
    """One experiment of a store.

    ``finished``: whether its results are published. ``record``: its record; empty for a damaged one. ``results_bytes``: of its tables and
    reports.
    """

    name: str
    finished: bool
    record: Mapping[str, Any]
    results_bytes: int

    @property
    def is_internal(self) -> bool:
        """Whether it only trains the models of an experiment, for `genrep export problem`."""
        return self.name.endswith(ORIGINALS)


@dataclass(frozen=True)
class DiskUsage:
    """The files of one part of a store: a top folder, or artifacts of one kind."""

    part: str
    what: str
    files: int
    bytes: int


def open_existing(uri: str) -> Store:
    """The store at ``uri``. StoreError for a folder that does not exist, which a reader must not create."""
    place = parse_uri(uri)
    if isinstance(place, Path) and (found := what_is_at(place)) != FOLDER:
        raise StoreError("there is no store", where=str(place), expected="the folder of a store", got=found, remedy="check --store")
    return Store(uri)


def experiments(store: Store) -> list[ExperimentEntry]:
    """All experiments of a store that have a record, by name. Damaged records and results count as not finished."""
    sizes = store.objects.sizes(RESULTS)
    found = []
    for name in recorded_names(store.objects.list(EXPERIMENTS)):
        folder = f"{ResultPaths(name).folder}/"
        size = sum(count for path, count in sizes.items() if path.startswith(folder))
        record = _record(store, name)
        found.append(ExperimentEntry(name, _is_finished(store, name, record), record, size))
    return found


def disk_usage(store: Store) -> list[DiskUsage]:
    """The parts of a store, the largest first."""
    counts: dict[str, list[int]] = {}
    for path, size in store.objects.sizes().items():
        counts.setdefault(store_part(path), []).append(size)
    usage = [DiskUsage(part, _describe(part), len(sizes), sum(sizes)) for part, sizes in counts.items()]
    return sorted(usage, key=lambda one: (-one.bytes, one.part))


def _describe(part: str) -> str:
    top, _, kind = part.partition("/")
    if top == ARTIFACTS:
        return _ARTIFACTS.get(kind, kind)
    return _WHAT.get(top, _OTHER if top.startswith("mlflow") else "other files")


def _record(store: Store, name: str) -> Mapping[str, Any]:
    try:
        record = store.objects.get_json(ExperimentPaths(name).record)
    except (CorruptError, FileNotFoundError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_finished(store: Store, name: str, record: Mapping[str, Any]) -> bool:
    publications = Publications(store.objects, name)
    try:
        manifest = publications.manifest()
    except CorruptError:
        return False
    # The record of results that were published under a later lease counts instead of the file.
    later = manifest is not None and publications.highest() > int(record.get("lease") or 0)
    return manifest is not None and (later or manifest.get("question") == record.get("question"))
