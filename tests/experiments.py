"""Small experiments over the toy problems."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from genrep_dist.config import Experiment, load_experiment

ROOT = Path(__file__).parent.parent

METHODS = [
    "ntk-final/tracking",
    "ntk-final/target",
    "ntk-final/surrogate",
    "last-layer-final/tracking",
    "last-layer-final/descent",
    "influence-final/tracking",
    "tracincp",
    "influence-function",
    "representer-point",
    "random",
]


def experiment(problem: str = "tests.toys:Blobs", options: dict[str, Any] | None = None, **fields: Any) -> Experiment:
    """Two seeds, two test points, three fractions; ``fields`` replace what is there."""
    return Experiment.model_validate(experiment_fields(problem, options) | fields)


def experiment_file(path: Path, problem: str = "tests.toys:Blobs", options: dict[str, Any] | None = None, **fields: Any) -> Path:
    """The same as a YAML file that the command line reads."""
    path.write_text(yaml.safe_dump(experiment_fields(problem, options) | fields))
    load_experiment(path)
    return path


def experiment_fields(problem: str, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """What :func:`experiment` declares, as a mapping."""
    return {
        "name": "toy",
        "problem": {"name": problem, "options": options or {}},
        "seeds": 2,
        "test_points": 2,
        "methods": METHODS,
        "influence": {"damping": 0.1},
        "deletion": {"fractions": [0.0, 0.1, 0.2], "signs": ["negative", "positive"]},
    }
