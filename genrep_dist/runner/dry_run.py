"""What a run would do, where, and how long it would take; nothing is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil

from genrep_dist.config import Experiment
from genrep_dist.errors import PlanError, StoreError
from genrep_dist.executors.capacity import check_schedulable, num_slots, worker_resources
from genrep_dist.plan import Plan
from genrep_dist.runner.track import tracking_uri
from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.known_plans import may_have_gpu
from genrep_dist.workflow.planning import power_warnings
from genrep_dist.workflow.room import check_room
from genrep_dist.workflow.status import StageStatus, stage_status

if TYPE_CHECKING:
    from genrep_dist.workflow.estimates import TimeEstimate
    from genrep_dist.workflow.prepare import PreparedExperiment


@dataclass(frozen=True)
class DryRun:
    """A ``plan``, the state of the store, and the workers that a run would have.

    ``status``: of each stage in the store. ``slots``: workers of the retrainings. ``in_process``: whether the work is so little that a run
    starts no workers, but does it itself. ``expected``: seconds, None if nothing was measured.
    ``gpu_hours``: a guess for a machine without a GPU. ``refusal``: why `genrep run` would refuse to start here, or empty.
    """

    plan: Plan
    status: Mapping[StageName, StageStatus]
    slots: int
    in_process: bool
    device: str
    expected: TimeEstimate | None
    gpu_hours: float | None
    refusal: str

    @property
    def worker_hours(self) -> float:
        """Of all stages, as estimated; 0 if nothing was measured."""
        return sum(self.expected.stages.values()) * self.slots / 3600 if self.expected else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What limits the reading of the results."""
        return (*self.plan.warnings, *power_warnings(self.plan.experiment))

    def plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        seconds = self.expected.stages if self.expected else {}
        retrain = self.status["retrain"]
        cost = {"device": self.device, "worker_hours": self.worker_hours, "gpu_hours_guess": self.gpu_hours}
        return {
            "experiment": self.plan.experiment.name,
            "stages": [
                {
                    "stage": stage.name,
                    "what": stage.what,
                    "units": self.status[stage.name].total,
                    "done": self.status[stage.name].done,
                    "bytes": stage.bytes_written,
                    "peak_bytes_per_worker": stage.peak_bytes,
                    "seconds": seconds.get(stage.name),
                }
                for stage in self.plan.stages
            ],
            "retrainings": {
                "asked": self.plan.retrainings_requested,
                "unique": retrain.total,
                "exact": retrain.exact,
                "done": retrain.done,
            },
            "workers": self.slots,
            "in_process": self.in_process,
            "seconds": self.expected.total if self.expected else None,
            "cost": cost if self.expected else None,
            "refusal": self.refusal or None,
            "warnings": list(self.warnings),
        }


def dry_run(prepared: PreparedExperiment, *, probe: bool = True, address: str | None = None) -> DryRun:
    """As :func:`dry_run_of`, for a prepared experiment. With ``probe``, this machine is measured for some seconds.

    Nothing is measured for a cluster's GPUs on a machine that has none.
    """
    found = dry_run_of(prepared.plan, prepared.store, address=address)
    if not probe or (found.device == "cuda" and not _num_gpus()):
        return found
    from genrep_dist.runner.small_runs import may_be_small, small_seconds
    from genrep_dist.workflow.estimates import estimate_run, gpu_hours, measure_rates

    plan, missing = prepared.plan, {name: stage.missing_share for name, stage in found.status.items()}
    rates = measure_rates(prepared)
    in_process = address is None and may_be_small(plan) and small_seconds(plan, rates, missing) is not None
    workers = 1 if in_process else found.slots
    expected = estimate_run(prepared, rates, workers, missing, found.status["retrain"].total, in_process=in_process)
    guess = gpu_hours(plan, prepared.recipe.epochs) if found.device != "cuda" else None
    return replace(found, slots=workers, in_process=in_process, expected=expected, gpu_hours=guess)


def dry_run_of(plan: Plan, store: Store, *, address: str | None = None) -> DryRun:
    """The dry run of a plan, without times. Imports torch only where there may be a GPU, and to check what is tuned.

    With ``address``, the workers are those of the Ray cluster there, and PlanError is raised for what it cannot hold. Without it, what
    does not fit is reported in ``refusal``, so that a plan for a larger machine can be read on a small one.
    """
    if plan.experiment.tune is not None:
        from genrep_dist.runner.tuning import check_tuning

        check_tuning(plan.experiment, plan.keys)
    resources, nodes = plan.experiment.resources, _nodes(plan.experiment, address)
    workers = num_slots(nodes, worker_resources(resources, "retrain", nodes))
    memory = int(sum(node.get("memory", 0.0) for node in nodes))
    refusal = ""
    try:
        check_schedulable(nodes, resources)
        check_room(plan, store, lambda stage: num_slots(nodes, worker_resources(resources, stage, nodes)), memory)
        tracking_uri(plan.experiment, store)
    except (PlanError, StoreError) as error:
        if address is not None:
            raise
        refusal = str(error)
    status = {stage.name: stage for stage in stage_status(plan, store, look_up=True)}
    # Which devices a cluster has is not known here.
    device = "cuda" if address is not None and resources.device == "cuda" else _device(resources.device)
    return DryRun(plan, status, workers, in_process=False, device=device, expected=None, gpu_hours=None, refusal=refusal)


def _device(choice: str) -> str:
    """The type of the device that workers on this machine use. ProblemError where a GPU is declared and there is none."""
    if choice != "cuda" and not may_have_gpu():
        return "cpu"
    from genrep_dist.workflow.context import pick_device

    return pick_device(choice).type


def _nodes(experiment: Experiment, address: str | None) -> list[Mapping[str, float]]:
    """Resources of the nodes that a run would use: those of a cluster, or this machine."""
    if address is not None:
        from genrep_dist.executors.ray_executor import cluster_nodes

        return list(cluster_nodes(address))
    cpus = max(experiment.resources.workers or 0, os.cpu_count() or 1)
    return [{"CPU": float(cpus), "GPU": float(_num_gpus()), "memory": float(psutil.virtual_memory().total)}]


def _num_gpus() -> int:
    if not may_have_gpu():
        return 0
    import torch

    return torch.cuda.device_count()
