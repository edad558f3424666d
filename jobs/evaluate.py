"""Run one experiment on the Ray cluster that this job was submitted to.

ray job submit --working-dir . --runtime-env jobs/runtime_env.yaml -- python jobs/evaluate.py smoke --store /shared/store
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrep_dist.cli import main


def arguments(given: list[str]) -> list[str]:
    """Return the command line of `genrep run`, attached to the running cluster unless ``given`` says otherwise."""
    here = [] if {"--serial", "--address"} & set(given) else ["--address", "auto"]
    return ["genrep", "run", *given, *here]


if __name__ == "__main__":
    sys.argv = arguments(sys.argv[1:])
    main()
