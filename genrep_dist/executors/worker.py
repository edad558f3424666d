"""What runs in a worker process of a cluster, and the proof that the worker has the driver's copy of this package.

Ray sends these functions by value. They therefore run on a worker whose copy of the package is another one, and they import nothing of the
package: job and unit arrive as references in lists, which Ray does not read by itself, and are read only after the comparison.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PackageCopy = Mapping[str, str]
"""A copy of this package: ``digest`` of its sources (empty if there is none), ``version``, ``folder``, and ``node``."""

_copies: list[PackageCopy] = []
"""The copy of this process, once it is known."""


def package_copy() -> PackageCopy:
    """The copy of this package that a process on this machine imports, found without importing it.

    The digest covers the names and bytes of all Python files, so that equal digests mean equal code.
    """
    found = importlib.util.find_spec("genrep_dist")
    node = platform.node()
    if found is None or found.origin is None:
        return {"digest": "", "version": "none", "folder": "not installed", "node": node}
    folder = Path(found.origin).parent
    total, version = hashlib.sha256(), "unknown"
    for path in sorted(folder.rglob("*.py")):
        data = path.read_bytes()
        total.update(f"{path.relative_to(folder).as_posix()} {len(data)}\n".encode() + data)
        if path.parent == folder and path.name == "__init__.py":
            lines = [line for line in data.decode(errors="replace").splitlines() if line.startswith("__version__")]
            version = lines[0].partition("=")[2].strip(" \"'") if lines else version
    return {"digest": total.hexdigest(), "version": version, "folder": str(folder), "node": node}


def differing_copy(digest: str) -> PackageCopy | None:
    """The copy of this process if its digest is not ``digest``; None if it is. The files are read once in a process."""
    if not _copies:
        _copies.append(package_copy())
    return None if _copies[0]["digest"] == digest else _copies[0]


def read_job(get: Callable[[Any], Any], reference: Any) -> tuple[Any, Callable[[Any, Any], dict[str, float]]]:
    """The job and the function that runs a unit.

    The first ones of a process import torch and this package: a million objects that stay. The garbage collector would look at them again
    and again, which takes a sixth of the time of these imports.
    """
    first = gc.get_freeze_count() == 0
    if first:
        gc.disable()
    try:
        job, work = get(reference)
    finally:
        if first:
            gc.freeze()
            gc.enable()
    return job, work


def run_unit(digest: str, get: Callable[[Any], Any], payload: list[Any], unit: list[Any]) -> dict[str, float] | tuple[PackageCopy]:
    """The unit's statistics; instead of them, this worker's copy of the package if it is not the driver's, of ``digest``.

    ``payload``: a reference to the job and the function that runs a unit; ``unit``: one to the unit; ``get`` reads them (``ray.get``).
    """
    differing = differing_copy(digest)
    if differing is not None:
        return (differing,)
    job, work = read_job(get, payload[0])
    return work(job, get(unit[0]))


class Worker:
    """An actor: a process that keeps its model, and its GPU, between units. Arguments and results as of :func:`run_unit`.

    An actor gets units only after :meth:`ready` has proved its copy, so they are plain arguments.
    """

    def __init__(self, digest: str, get: Callable[[Any], Any]) -> None:
        self._differing, self._get = differing_copy(digest), get
        self._payload: list[Any] = []

    def ready(self) -> dict[str, float] | tuple[PackageCopy]:
        return {} if self._differing is None else (self._differing,)

    def run(self, payload: list[Any], unit: Any) -> dict[str, float]:
        if payload != self._payload:
            self._job, self._work = read_job(self._get, payload[0])
            self._payload = payload
        return self._work(self._job, unit)
