"""The one door through which every executor runs a unit of work."""

from __future__ import annotations

import time

import torch

from genrep_dist.training.threads import one_thread
from genrep_dist.units import (
    AttributionUnit,
    DiagonalUnit,
    GradientUnit,
    GramUnit,
    ImportanceUnit,
    InfluenceUnit,
    KernelUnit,
    TrainUnit,
    Unit,
)
from genrep_dist.workflow import attributions, diagonals, gradients, importances, influence, kernels, retrain, train
from genrep_dist.workflow.context import Job, Workbench

_benches: dict[str, Workbench] = {}


def workbench(job: Job) -> Workbench:
    """The process's workbench for ``job``; opening one drops the last, so that a process holds one data set at a time."""
    key = f"{job.store_uri}/{job.keys.question}/{job.experiment.resources.device}"
    if key not in _benches:
        _benches.clear()
        _benches[key] = Workbench(job)
    return _benches[key]


def execute(job: Job, unit: Unit) -> dict[str, float]:
    """Run one unit and return its statistics. What it makes is in the store, whole, or not at all.

    On the CPU a unit uses one thread: floating-point sums then run in one order, and a result depends neither on the machine's
    cores nor on how many workers share them.
    """
    # On a GPU: float32 means float32. Lower precision is nobody's default here.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with one_thread():
        bench = workbench(job)
        bench.began = time.perf_counter()
        return _run(unit, bench)


def _run(unit: Unit, bench: Workbench) -> dict[str, float]:
    match unit:
        case TrainUnit():
            return train.run(unit, bench)
        case GradientUnit():
            return gradients.run(unit, bench)
        case KernelUnit():
            return kernels.run_kernel(unit, bench)
        case GramUnit():
            return kernels.run_gram(unit, bench)
        case InfluenceUnit():
            return influence.run(unit, bench)
        case ImportanceUnit():
            return importances.run(unit, bench)
        case AttributionUnit():
            return attributions.run(unit, bench)
        case DiagonalUnit():
            return diagonals.run(unit, bench)
        case _:
            return retrain.run(unit, bench)
