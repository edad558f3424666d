"""The command line as it is, but for MLflow and figures, which take longer than these experiments: `python -m tests.faults.driver run ...`.

GENREP_TEST_LEASE_SECONDS is how long a lease lasts without a sign of life, instead of a minute.
With `--no-lease` it does not ask whether another driver is at work, as one that has slept through its own lease.
"""

from __future__ import annotations

import os
import sys
from unittest.mock import MagicMock

import pytest

from genrep_dist import cli
from genrep_dist.runner import run as pipeline
from genrep_dist.runner.progress import ProgressCounter
from genrep_dist.store import Store
from genrep_dist.store.lease import Lease
from tests.publication import publish_tables_only

if __name__ == "__main__":
    publish_tables_only(pytest.MonkeyPatch())
    if "--no-lease" in sys.argv:
        sys.argv.remove("--no-lease")
        pipeline._lease = MagicMock()
    if seconds := float(os.environ.get("GENREP_TEST_LEASE_SECONDS", "0")):
        usual = pipeline._lease

        def brief(store: Store, name: str, progress: ProgressCounter) -> Lease:
            found = usual(store, name, progress)
            found._renew_seconds, found._timeout_seconds = seconds / 8, seconds
            return found

        pipeline._lease = brief
    cli.main()
