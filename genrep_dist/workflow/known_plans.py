"""Plans of experiments that were prepared before, so that `genrep plan` need not build the model and read the data again.

They are kept for shipped problems alone: what a user's own code and files make is known by running them. A plan is found again by all that
it follows from: the experiment, the installed packages and their versions, this package's files, the files of its data sets, the machine.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from genrep_dist.config import Experiment
from genrep_dist.config.digests import json_digest
from genrep_dist.errors import ProblemError
from genrep_dist.plan import Plan
from genrep_dist.problems.datasets.cache import cache_folder, write_atomically
from genrep_dist.problems.named_code import state_folder
from genrep_dist.provenance import installation_digest
from genrep_dist.store.sealed import CHECKSUM, seal_json, unseal_json
from genrep_dist.workflow.record import make_record, plan_of_record
from genrep_dist.workflow.user_code import classes_named

if TYPE_CHECKING:
    from genrep_dist.workflow.prepare import PreparedExperiment

FOLDER = "plans"
"""Below :func:`genrep_dist.problems.named_code.state_folder`: others may write into the cache of the data sets, but not there."""
NUM_KEPT = 100
_DERIVED = "tokens"
"""A folder of the cache that is no data set: what is in it follows from those."""


class KnownPlan:
    """The plan of an experiment by what it follows from at this moment. Make it before the experiment is prepared. Imports no torch."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._path = _path(experiment)

    def read(self) -> Plan | None:
        """The plan, as preparing the experiment would make it; None if it was not kept."""
        if self._path is None:
            return None
        try:
            content = self._path.read_bytes()
            record = unseal_json(content)
        except (OSError, ValueError):  # there is none, or a damaged one
            return None
        if CHECKSUM.encode() not in content[:100]:  # it was not written by :meth:`keep`
            return None
        # The record has no passwords.
        return plan_of_record({**record, "experiment": self._experiment.resolved()})

    def keep(self, prepared: PreparedExperiment) -> None:
        """Keep the plan of the prepared experiment, unless it depends on what cannot be verified. Nothing is kept where that fails."""
        if self._path is None or prepared.plan.keys.extensions:
            return
        with suppress(OSError, ProblemError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, seal_json(make_record(prepared)))
        with suppress(OSError):  # another process may delete the same files
            by_age = sorted(self._path.parent.glob("*.json"), key=lambda kept: kept.stat().st_mtime)
            for old in by_age[:-NUM_KEPT]:
                old.unlink()


def may_have_gpu() -> bool:
    """Whether torch may find a GPU: whether the driver of one is on this machine. Imports no torch."""
    if sys.platform == "darwin":
        return False
    if sys.platform != "linux" or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _path(experiment: Experiment) -> Path | None:
    """The file of an experiment's plan; None if the plan depends on a user's code or files, scores from elsewhere, or on GPUs."""
    declared = experiment.resolved()
    # A text may name a file of the user.
    has_files = experiment.external_methods or any(isinstance(value, str) for value in experiment.problem.options.values())
    if has_files or classes_named(declared) or may_have_gpu():
        return None
    try:
        data, folder = _data_files(cache_folder()), state_folder() / FOLDER
    except (OSError, RuntimeError):  # what cannot be read, or a user without a home
        return None
    return folder / f"{json_digest([installation_digest(), declared, data, platform.node(), platform.machine()])}.json"


def _data_files(folder: Path) -> list[tuple[str, str, int, int]]:
    """The files of all data sets in the cache: folder, name, size, and time of the last change in nanoseconds."""
    if not folder.exists():
        return []
    data_sets = [entry for entry in os.scandir(folder) if entry.is_dir() and entry.name != _DERIVED]
    files = [(data_set.name, file) for data_set in data_sets for file in os.scandir(data_set)]
    return sorted((name, file.name, file.stat().st_size, file.stat().st_mtime_ns) for name, file in files)
