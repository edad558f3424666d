"""Removes experiments from a store, and files that no experiment refers to.

Experiments share what they compute: :func:`remove_experiment` deletes only what is the experiment's own, and :func:`collect_garbage` what
is left without an experiment. Both work under the leases of the experiments, so that no run is disturbed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from genrep_dist.errors import GenRepError, StoreError
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.store.lease import Lease, lease_holder
from genrep_dist.store.paths import (
    ARTIFACTS,
    DATA,
    EXPERIMENTS,
    LEDGERS,
    ORIGINALS,
    REFUSED,
    RESULTS,
    ArtifactPaths,
    ExperimentPaths,
    LedgerPaths,
    ResultPaths,
    artifact_folder,
    data_folder,
    entry_folder,
    experiment_name,
    is_artifact,
    recorded_names,
    store_part,
)
from genrep_dist.store.publications import Publications
from genrep_dist.store.records import UNREADABLE
from genrep_dist.workflow.record import plan_of_record, read_record
from genrep_dist.workflow.stages import STAGES, all_artifacts
from genrep_dist.workflow.user_code import allowed_code

Message = Callable[[str], object]


@dataclass(frozen=True)
class Removal:
    """A folder that is deleted as a whole: ``what`` it is, its ``files`` and ``bytes``."""

    folder: str
    what: str
    files: int
    bytes: int


@dataclass(frozen=True)
class References:
    """The folders that experiments refer to, by the name of the experiment.

    ``unknown``: experiments whose references cannot be found, each with the reason.
    """

    folders: dict[str, set[str]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentSize:
    """``bytes`` of all that an experiment refers to, of which no other experiment refers to ``own_bytes``."""

    name: str
    bytes: int
    own_bytes: int


def experiment_sizes(store: Store, references: References) -> list[ExperimentSize]:
    """The sizes of the experiments whose references are known, the largest first."""
    by_folder = {removal.folder: removal.bytes for removal in _removals(store.objects.sizes())}
    users = Counter(folder for folders in references.folders.values() for folder in folders)
    found = []
    for name, folders in references.folders.items():
        sizes = [(folder, by_folder.get(folder, 0)) for folder in folders]
        own = sum(size for folder, size in sizes if users[folder] == 1)
        found.append(ExperimentSize(name, sum(size for _, size in sizes), own))
    return sorted(found, key=lambda one: (-one.bytes, one.name))


def find_references(store: Store) -> References:
    """What each experiment of the store refers to: artifacts, the ledger, data and results, from its records."""
    found = References()
    for name in recorded_names(store.objects.list(EXPERIMENTS)):
        try:
            folders = {ExperimentPaths(name).folder, ResultPaths(name).folder}
            for plan in _plans(store, name):
                folders |= {ArtifactPaths(spec.kind, spec.key).folder for _, spec in all_artifacts(plan)}
                folders |= {LedgerPaths(plan.keys.training).folder, data_folder(plan.keys.data)}
        except GenRepError as error:
            found.unknown[name] = error.what
        except UNREADABLE as error:
            found.unknown[name] = f"its record cannot be read ({type(error).__name__}: {error})"
        else:
            found.folders[name] = folders
    return found


def find_garbage(store: Store, *, ledgers: bool = False) -> list[Removal]:
    """Artifacts and data that no experiment of the store refers to, and damaged files that were moved away; the largest first.

    ``ledgers``: also the retrained models of no experiment. They are the most expensive part of a store, and a ledger that was imported
    belongs to no experiment before it is used. StoreError if the references of an experiment cannot be found.
    """
    references = find_references(store)
    if references.unknown:
        name, reason = next(iter(references.unknown.items()))
        raise StoreError(
            "it is not known what an experiment refers to, so nothing can be deleted",
            where=f"{store.uri}, experiment {name}",
            expected="a readable record, and the code that it names",
            got=reason,
            remedy=f"run {name} again here, or remove it first: genrep rm {name}",
        )
    used = {folder for folders in references.folders.values() for folder in folders}
    sizes = store.objects.sizes(ARTIFACTS) | store.objects.sizes(DATA) | store.objects.sizes(REFUSED)
    if ledgers:
        sizes |= store.objects.sizes(LEDGERS)
    return [found for found in _removals(sizes) if found.folder not in used]


def collect_garbage(store: Store, *, ledgers: bool = False, message: Message = lambda text: None) -> list[Removal]:
    """Delete what :func:`find_garbage` finds, and return it. StoreError if a run is active.

    Runs of experiments of the store wait meanwhile. Do not start a new experiment in it before this returns.
    """
    names = _names(store)
    with ExitStack() as stack:
        _require_idle(store, names)
        for name in names:
            stack.enter_context(_lease(store, name, message))
        found = find_garbage(store, ledgers=ledgers)
        _require_idle(store, [name for name in _names(store) if name not in names])
        for removal in found:
            _delete(store, removal.folder)
    return found


def experiment_files(store: Store, name: str) -> list[Removal]:
    """What :func:`remove_experiment` deletes. StoreError for an experiment that the store does not have."""
    known = _names(store)
    if name not in known:
        read_record(store, name)  # raises, and names the known ones
    names = [one for one in (name, f"{name}{ORIGINALS}") if one in known]
    folders = [folder for one in names for folder in (ExperimentPaths(one).folder, ResultPaths(one).folder)]
    sizes = {path: size for folder in folders for path, size in store.objects.sizes(folder).items() if not _is_of_lease(path)}
    return list(_removals(sizes))


def remove_experiment(store: Store, name: str, *, message: Message = lambda text: None) -> list[Removal]:
    """Delete the record and the results of an experiment, and its run that only trained models for an export.

    StoreError if a run of it is active. What it shares with others stays: models, scores, ledger and data, which :func:`collect_garbage`
    deletes, and its runs in MLflow.
    """
    found = experiment_files(store, name)
    names = [one for one in (f"{name}{ORIGINALS}", name) if one in _names(store)]
    _require_idle(store, names)
    for one in names:
        paths = ExperimentPaths(one)
        with _lease(store, one, message):
            # Results first and the record last, so that what was interrupted can be repeated.
            store.objects.delete(ResultPaths(one).manifest)
            store.objects.delete_folder(ResultPaths(one).folder)
            # The lease stays: a driver that slept meanwhile sees by its number that others came after it.
            for path in sorted(store.objects.sizes(paths.folder), key=lambda path: path == paths.record):
                if not _is_of_lease(path):
                    store.objects.delete(path)
            for folder in (ResultPaths(one).folder, paths.folder):
                store.objects.delete_empty_folders(folder)
    return found


def _plans(store: Store, name: str) -> Iterator[Plan]:
    """The plans of an experiment's record, and of its published results if another run has replaced the record."""
    record = read_record(store, name)
    published = (Publications(store.objects, name).manifest() or {}).get("record") or record
    for one in [record] if published.get("question") == record["question"] else [record, published]:
        missing = [label for label in one["extensions"] if label.startswith("stage ") and label.removeprefix("stage ") not in STAGES]
        if missing:
            raise StoreError(f"the {missing[0]} of this run is not registered here")
        code = allowed_code(store, one, None)
        yield plan_of_record(one, None if code is None else code.folders)


def _names(store: Store) -> list[str]:
    """All experiments with files other than their lease, also those whose record is missing."""
    paths = store.objects.list(EXPERIMENTS)
    own = {experiment_name(path) for path in paths if not _is_of_lease(path)}
    return sorted(own | set(map(experiment_name, store.objects.list(RESULTS))))


def _is_of_lease(path: str) -> bool:
    """Whether a path below EXPERIMENTS is that of an experiment's lease."""
    return path.startswith(f"{ExperimentPaths(experiment_name(path)).lease}/")


def _require_idle(store: Store, names: Iterable[str]) -> None:
    for name in names:
        if holder := lease_holder(store.objects, ExperimentPaths(name).lease):
            raise StoreError(
                "a run is active in this store, and nothing was deleted",
                where=f"{store.uri}, experiment {name}",
                expected="no active run",
                got=holder,
                remedy="wait until it ends, or stop it, and try again",
            )


def _lease(store: Store, name: str, message: Message) -> Lease:
    return Lease(store.objects, ExperimentPaths(name).lease, message, above=Publications(store.objects, name).highest())


def _removals(sizes: Mapping[str, int]) -> Sequence[Removal]:
    """The folders of the given files, the largest first."""
    by_folder: dict[str, list[int]] = {}
    for path, size in sizes.items():
        by_folder.setdefault(artifact_folder(path) or entry_folder(path), []).append(size)
    found = [Removal(folder, store_part(folder), len(counts), sum(counts)) for folder, counts in by_folder.items()]
    return sorted(found, key=lambda one: (-one.bytes, one.folder))


def _delete(store: Store, folder: str) -> None:
    """Delete a folder so that what an interruption leaves is never taken for finished."""
    if is_artifact(folder):
        paths = ArtifactPaths.of_folder(folder)
        store.objects.delete(paths.manifest)
        store.objects.delete_folder(paths.records)
    store.objects.delete_folder(folder)
    store.objects.delete_empty_folders(folder)
