"""The one function through which every executor runs a unit of work."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import cast

from genrep_dist.extension import require_returned
from genrep_dist.registry import register_all
from genrep_dist.training.precision import full_precision_products
from genrep_dist.training.threads import one_thread
from genrep_dist.units import Unit
from genrep_dist.workflow.context import Job, WorkerContext
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.time_limit import process_limit, time_limit

_contexts: dict[str, WorkerContext] = {}


def worker_context(job: Job) -> WorkerContext:
    """The process's context for ``job``; opening one drops the last, so that a process holds one data set at a time.

    Whoever computes with it, a unit or a driver that explains, computes in full precision, unless a recipe declares another one.
    """
    full_precision_products()
    resources = job.experiment.resources
    own = (job.store_uri, job.keys.results, resources.device, resources.cuda_graphs, job.prediction_rows, job.gradient_rows)
    key = "/".join(map(str, own))
    if key not in _contexts:
        _contexts.clear()
        _contexts[key] = WorkerContext(job)
    return _contexts[key]


def execute(job: Job, unit: Unit, *, in_worker: bool = False) -> dict[str, float]:
    """Run one unit and return its statistics. What it makes is in the store, whole, or not at all.

    ``in_worker``: this process may end with a unit that exceeds ``resources.unit_timeout`` in a call that cannot be interrupted.

    On the CPU a unit uses one thread: floating-point sums then run in one order, and a result depends neither on the machine's
    cores nor on how many workers share them.
    """
    register_all(job.registrations)
    with one_thread():
        context = worker_context(job)
        context.unit_began = time.perf_counter()
        stage, seconds = STAGES.get(unit.stage), job.experiment.resources.unit_timeout
        # A task of several models has the time of all of them.
        most = None if seconds is None else seconds * unit.size
        with process_limit(most) if in_worker else nullcontext(), time_limit(most, unit.label):
            found: object = stage.run(unit, context)
        fits = isinstance(found, dict) and all(isinstance(value, int | float) for value in found.values())
        require_returned(fits, stage, "run", "statistics: a dict of floats", found, unit.label)
        return {name: float(value) for name, value in cast("dict[str, float]", found).items()}
