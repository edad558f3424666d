"""What scheduling costs: retraining tasks through Ray, of the demo's size, by how many models a task carries.

One worker; the time from one task's end to the next's, less what its models trained for (their own initialisation and prediction included),
is what submitting, looking up, entering into the ledger and reporting cost. Models and rows are the demo's; a task's first run in a process, with
imports, data and the choice of a pack size, is shown apart. Goal: under 3% at the size that a run chooses.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from genrep_dist.config import load_experiment
from genrep_dist.runtime.progress import SilentProgress
from genrep_dist.runtime.ray_executor import RayExecutor
from genrep_dist.stages.asked import ask
from genrep_dist.stages.job import Job
from genrep_dist.stages.prepare import Prepared, prepare, publish_inputs
from genrep_dist.stages.retrain import retrain_units
from genrep_dist.units import RetrainUnit
from genrep_dist.walk import STAGES, Walk, Workers
from tests.benchmarks import measured_on, publish, spread, table

SIZES = (1, 4, 16, 60)


def main() -> None:
    raise SystemExit


if __name__ == "__main__":
    main()
