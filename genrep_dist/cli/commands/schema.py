"""`genrep schema`."""

from __future__ import annotations

from genrep_dist.cli.terminal import print_json


def schema() -> None:
    """Print the JSON Schema of experiment files, for completion and checks in editors."""
    from genrep_dist.config import Experiment

    print_json(Experiment.model_json_schema(by_alias=True))
