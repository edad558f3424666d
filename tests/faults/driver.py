"""The command line as it is, but for MLflow, which takes longer than these experiments: `python -m tests.faults.driver run ...`.

With `--no-lease` it does not ask whether another driver is at work, as one that has slept through its own lease.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from genrep_dist import cli
from genrep_dist.runner import publish
from genrep_dist.runner import run as pipeline


def no_tracking(*_arguments: Any, **_options: Any) -> Any:
    return SimpleNamespace(tracking_uri="", experiment_id="", run_id="", hint="none")


if __name__ == "__main__":
    publish._track = no_tracking
    if "--no-lease" in sys.argv:
        sys.argv.remove("--no-lease")
        pipeline._lease = MagicMock()
    cli.main()
