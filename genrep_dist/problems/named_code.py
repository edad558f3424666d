"""Code that the user of this machine has named, remembered in a folder of theirs.

A store or an export names classes and folders, and nothing of them is imported for that reason alone. What a driver runs is remembered as
a digest of its classes, their options, their folders and the identities of their code. A record with the same digest may load it again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genrep_dist.errors import ProblemError
from genrep_dist.problems.shipped import SHIPPED
from genrep_dist.problems.sources import source_on_disk


def state_folder() -> Path:
    """The folder of what is kept for this user: ``GENREP_STATE``, or ``~/.local/state/genrep_dist``. RuntimeError without a home."""
    declared = os.environ.get("GENREP_STATE")
    return Path(declared).expanduser() if declared else Path.home() / ".local" / "state" / "genrep_dist"


def memory_folder() -> Path:
    """Where it is remembered what was run."""
    return state_folder() / "code"


def remember(parts: Any, text: str) -> None:
    """Remember plain data, with a ``text`` for people who look into the folder. Where that cannot be written, nothing is remembered."""
    if is_remembered(parts):
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: a user without a home
        path = memory_folder() / _digest(parts)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)  # its owner alone may read and write it
        with os.fdopen(handle, "w") as file:
            file.write(f"{text}\n")
        Path(temporary).replace(path)


def is_remembered(parts: Any) -> bool:
    """Whether this user has remembered these plain data on this machine."""
    try:
        return os.stat(memory_folder() / _digest(parts)).st_uid == os.getuid()
    except (OSError, RuntimeError):
        return False


def is_shipped_problem(name: str) -> bool:
    """Whether a problem is one of this package, by its name. (This package's modules by path are not: they have other functions.)"""
    return name in SHIPPED


def remember_export(problem: Mapping[str, Any]) -> None:
    """Remember the problem of an export, as its problem.json has it."""
    if not is_shipped_problem(problem["name"]):
        remember(dict(problem), "\n".join(problem["search_path"]))


def exported_folders(problem: Mapping[str, Any], search_path: Sequence[str | Path], where: str) -> list[str]:
    """The folders from which the problem of an export may be imported.

    ProblemError unless the problem ships, or its class is defined in a file of ``search_path``, which the caller names, or this user has
    exported it on this machine.
    """
    if is_shipped_problem(problem["name"]):
        return []
    named = [str(folder) for folder in search_path]
    if is_remembered(dict(problem)):
        return [*named, *problem["search_path"]]
    if not _defines(problem["name"], named):
        raise ProblemError(
            "an export runs no code of its own",
            where=f"{where}: {problem['name']}",
            expected="a class in a file of a folder that is named, or a problem that was exported on this machine",
            got=", ".join(named) or "no folder",
            remedy="name the folder of the problem's module, if you trust it: search_path=[FOLDER]",
        )
    return named


def _defines(name: str, folders: Sequence[str]) -> bool:
    """Whether a file of ``folders`` defines the class ``module:Class`` itself."""
    module, _, class_name = name.partition(":")
    source = source_on_disk(module, list(folders), only=True)
    tree = None if source is None else source.tree
    return tree is not None and any(isinstance(node, ast.ClassDef) and node.name == class_name for node in tree.body)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
