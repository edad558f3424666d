"""genrep_dist: the judge of sample-based explanations, and the first public implementation of generalized representers.

Names are loaded when they are used: ``import genrep_dist`` imports neither torch nor ray nor mlflow. It sets the environment variable
``MKL_CBWR`` on processors that are not Intel's (:mod:`genrep_dist.blas`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genrep_dist.blas import make_reproducible

if TYPE_CHECKING:
    from genrep_dist.config import Experiment as Experiment
    from genrep_dist.config import load_experiment as load_experiment
    from genrep_dist.errors import GenRepError as GenRepError
    from genrep_dist.external import open_exported as open_exported
    from genrep_dist.problems.load import load_problem as load_problem
    from genrep_dist.problems.padding import pad_rows as pad_rows
    from genrep_dist.problems.protocol import Dataset as Dataset
    from genrep_dist.problems.protocol import Problem as Problem
    from genrep_dist.problems.protocol import Recipe as Recipe
    from genrep_dist.results import Run as Run
    from genrep_dist.results import open_run as open_run
    from genrep_dist.runner.run import run as run

__version__ = "0.1.0"

make_reproducible()

_HOMES = {
    "Dataset": "problems.protocol",
    "Experiment": "config",
    "GenRepError": "errors",
    "Problem": "problems.protocol",
    "Recipe": "problems.protocol",
    "Run": "results",
    "load_experiment": "config",
    "load_problem": "problems.load",
    "open_exported": "external",
    "open_run": "results",
    "pad_rows": "problems.padding",
    "run": "runner.run",
}

__all__ = [
    "Dataset",
    "Experiment",
    "GenRepError",
    "Problem",
    "Recipe",
    "Run",
    "__version__",
    "load_experiment",
    "load_problem",
    "open_exported",
    "open_run",
    "pad_rows",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"genrep_dist.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'genrep_dist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
