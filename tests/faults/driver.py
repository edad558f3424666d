"""The command line as it is, but for MLflow and figures, which take longer than these experiments: `python -m tests.faults.driver run ...`.

With `--no-lease` it does not ask whether another driver is at work, as one that has slept through its own lease.
"""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest

from genrep_dist import cli
from genrep_dist.runner import run as pipeline
from tests.publication import publish_tables_only

if __name__ == "__main__":
    publish_tables_only(pytest.MonkeyPatch())
    if "--no-lease" in sys.argv:
        sys.argv.remove("--no-lease")
        pipeline._lease = MagicMock()
    cli.main()
