"""The command line as it is, but for MLflow, which takes longer than these experiments: `python -m tests.faults.driver run ...`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from genrep_dist import cli, publish


def no_tracking(*_arguments: Any, **_options: Any) -> Any:
    return SimpleNamespace(tracking_uri="", experiment_id="", run_id="", hint="none")


if __name__ == "__main__":
    publish._track = no_tracking
    cli.main()
