"""Which code of a user a stored run may load. A record of a store names classes; nothing of them is imported because it names them.

A class is imported if the user of this machine has named it: by running the experiment here (:mod:`genrep_dist.problems.named_code`), or
by naming the experiment again where the run is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import METRICS
from genrep_dist.errors import ConfigError, ProblemError, StoreError
from genrep_dist.problems.named_code import is_remembered, is_shipped_problem, remember
from genrep_dist.problems.sources import source_on_disk
from genrep_dist.store import Store


@dataclass(frozen=True)
class NamedCode:
    """An ``experiment`` that a user names, and the ``folders`` in which its modules are. ``running``: this process runs it."""

    experiment: Experiment
    folders: tuple[str, ...]
    running: bool = False


@dataclass(frozen=True)
class AllowedCode:
    """The ``folders`` from which the classes of a run may be imported.

    ``options``: those of the problem as the user has named them; None: those of the record. ``running``: this process runs the experiment.
    """

    folders: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    running: bool = False


def classes_named(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """What the plain data of an experiment name of a user's own, by place: classes, functions, options of kernels; {} for none."""
    found: dict[str, Any] = {}
    if not is_shipped_problem(name := experiment["problem"]["name"]):
        found["problem.name"] = name
    if (augment := (experiment.get("recipe") or {}).get("augment")) is not None:
        found["recipe.augment"] = augment
    for name, kernel in (experiment.get("kernels") or {}).items():
        found[f"kernels.{name}"] = [kernel["class"], kernel.get("options") or {}]
    for name, settings in (experiment.get("metrics") or {}).items():
        if (target := settings.get("class")) is not None and not METRICS.is_registered_as(name, target):
            found[f"metrics.{name}"] = target
    return found


def planning_needs(record: Mapping[str, Any]) -> list[str]:
    """The places of classes that a plan is made with: metrics, and kernels that are not functions of pairs."""
    functions = {f"kernels.{name}" for name in record["own_kernels"]}
    unneeded = functions | {"problem.name", "recipe.augment"}
    return [place for place in classes_named(record["experiment"]) if place not in unneeded]


def remember_code(record: Mapping[str, Any]) -> None:
    """Remember that the code of a run was named by the user of this machine."""
    if classes_named(record["experiment"]):
        remember(_code_parts(record), "\n".join(record["search_path"]))


def allowed_code(store: Store, record: Mapping[str, Any], named: NamedCode | None) -> AllowedCode | None:
    """The code that a run may load and where it is; None for code that nobody has named here.

    Folders inside the store are left out, as others may write there, unless this process runs the experiment. ConfigError where
    ``named`` is not the experiment of the ``record``.
    """
    wanted = classes_named(record["experiment"])
    folders, options = tuple(record["search_path"]), None
    if named is not None:
        declared = classes_named(named.experiment.resolved())
        differing = [place for place in dict.fromkeys((*wanted, *declared)) if wanted.get(place) != declared.get(place)]
        if differing:
            raise ConfigError(
                "the experiment that is named is not the one of this run",
                where=differing[0],
                expected=f"{wanted.get(differing[0], 'none')}, as in the store's record",
                got=str(declared.get(differing[0], "none")),
                remedy="name the experiment file that this run was made with",
            )
        folders, options = named.folders, named.experiment.problem.options
        if named.running:
            return AllowedCode(folders, options, running=True)
    if not wanted:
        return AllowedCode()
    if named is None and not is_remembered(_code_parts(record)):
        return None
    if _is_inside(store, "."):
        raise StoreError(
            "this run's code is searched in the current folder, which is inside the store",
            where=str(Path.cwd()),
            expected="a current folder outside the store, as others may write into a store",
            remedy="change to another folder",
        )
    return AllowedCode(tuple(folder for folder in folders if not _is_inside(store, folder)), options)


def refused_code(record: Mapping[str, Any]) -> StoreError:
    """The error for code that nobody has named here."""
    wanted = {place: value if isinstance(value, str) else value[0] for place, value in classes_named(record["experiment"]).items()}
    return StoreError(
        "this needs the run's own code, and a store runs no code",
        where=f"experiment {record['experiment'].get('name')}: " + ", ".join(f"{place} {value}" for place, value in wanted.items()),
        expected="code that this user has run on this machine, or names again",
        got="classes that only the store names",
        remedy="name the experiment file that you trust: --experiment FILE, or open_run(..., experiment=FILE)",
    )


def require_unchanged(record: Mapping[str, Any], folders: Sequence[str]) -> None:
    """Raise ProblemError, before anything is imported, for a user's file in ``folders`` that is not the one of the run."""
    for identity in record.get("identities", {}).values():
        for module, digest in identity["files"].items():
            source = source_on_disk(module, [*folders, str(Path.cwd())])
            if source is not None and source.digest != digest:
                raise ProblemError(
                    f"{source.path.name} changed since this run: it differs from the one that the run was made with",
                    where=str(source.path),
                    expected=f"source digest {digest}",
                    got=source.digest,
                    remedy="restore that file, or run the experiment again, under another name to keep this run. Tables, scores and the "
                    "report need no code",
                )


def _code_parts(record: Mapping[str, Any]) -> list[Any]:
    """All that decides which code is loaded and with what."""
    options = record["experiment"]["problem"].get("options") or {}
    return [classes_named(record["experiment"]), options, list(record["search_path"]), record.get("identities", {})]


def _is_inside(store: Store, folder: str) -> bool:
    return store.objects.root is not None and Path(folder).resolve().is_relative_to(store.objects.root)
