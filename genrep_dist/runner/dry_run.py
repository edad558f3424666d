"""What a run would do, where, and how long it would take; nothing is computed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from genrep_dist.config import Experiment
from genrep_dist.errors import PlanError, StoreError
from genrep_dist.executors.capacity import check_schedulable, num_slots, worker_resources
from genrep_dist.plan import Plan
from genrep_dist.runner.small_runs import may_be_small, small_seconds
from genrep_dist.runner.track import tracking_uri
from genrep_dist.units import StageName
from genrep_dist.workflow.context import pick_device
from genrep_dist.workflow.estimates import TimeEstimate, estimate_run, gpu_hours, measure_rates
from genrep_dist.workflow.planning import power_warnings
from genrep_dist.workflow.prepare import PreparedExperiment, check_room
from genrep_dist.workflow.status import StageStatus, stage_status


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
    """The dry run of a prepared experiment; with ``probe``, this machine is measured for some seconds.

    With ``address``, the workers are those of the Ray cluster there, and PlanError is raised for what it cannot hold. Without it, what
    does not fit is reported in ``refusal``, so that a plan for a larger machine can be read on a small one.
    """
    plan = prepared.plan
    resources, nodes = plan.experiment.resources, _nodes(plan.experiment, address)
    workers = num_slots(nodes, worker_resources(resources, "retrain", nodes))
    memory = int(sum(node.get("memory", 0.0) for node in nodes))
    refusal = ""
    try:
        check_schedulable(nodes, resources)
        check_room(plan, prepared.store, lambda stage: num_slots(nodes, worker_resources(resources, stage, nodes)), memory)
        tracking_uri(plan.experiment, prepared.store)
    except (PlanError, StoreError) as error:
        if address is not None:
            raise
        refusal = str(error)
    status = {stage.name: stage for stage in stage_status(plan, prepared.store, look_up=True)}
    missing = {name: stage.missing_share for name, stage in status.items()}
    device = pick_device(resources.device).type
    expected, in_process = None, False
    if probe:
        rates = measure_rates(prepared)
        in_process = address is None and may_be_small(plan) and small_seconds(plan, rates, missing) is not None
        workers = 1 if in_process else workers
        expected = estimate_run(prepared, rates, workers, missing, status["retrain"].total, in_process=in_process)
    guess = gpu_hours(plan, prepared.recipe.epochs) if probe and device != "cuda" else None
    return DryRun(plan, status, workers, in_process, device, expected, guess, refusal)


def _nodes(experiment: Experiment, address: str | None) -> list[Mapping[str, float]]:
    """Resources of the nodes that a run would use: those of a cluster, or this machine."""
    if address is not None:
        from genrep_dist.executors.ray_executor import cluster_nodes

        return list(cluster_nodes(address))
    cpus = max(experiment.resources.workers or 0, os.cpu_count() or 1)
    return [{"CPU": float(cpus), "GPU": float(torch.cuda.device_count()), "memory": float(psutil.virtual_memory().total)}]
