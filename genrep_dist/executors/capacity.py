"""How many workers fit on the nodes of a cluster, and the refusal of workers that can never be scheduled."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.errors import PlanError
from genrep_dist.units import StageName

NodeResources = Mapping[str, float]
"""Resources of one node under Ray's names: ``CPU``, ``GPU``, ``memory`` (bytes)."""


@dataclass(frozen=True)
class WorkerResources:
    """What one worker reserves, how many workers there may be, and the config section ``where`` this was declared."""

    num_cpus: float
    num_gpus: float
    memory_bytes: int
    min_workers: int
    max_workers: int | None
    where: str

    def __str__(self) -> str:
        memory = f" and {self.memory_bytes:,} bytes of memory" if self.memory_bytes else ""
        return f"{self.num_cpus:g} CPU and {self.num_gpus:g} GPU{memory}"


def worker_resources(resources: ResourcesSection, stage: StageName | None, nodes: Sequence[NodeResources]) -> WorkerResources:
    """What a worker of ``stage`` reserves; None means any stage without its own section.

    If ``num_gpus`` is not declared, a worker gets one GPU if any node has one, unless ``resources.device`` is cpu. PlanError if
    ``num_gpus`` is above 1 and not an integer.
    """
    own = resources.stages.get(stage) if stage is not None else None
    overrides = {} if own is None else {name: value for name, value in own if value is not None}
    values = {name: overrides.get(name, getattr(resources, name)) for name in ("num_cpus", "num_gpus", "memory", "min_workers", "workers")}
    gpus = values["num_gpus"]
    if gpus is None:
        gpus = 1.0 if resources.device != "cpu" and any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
    where = "resources" if own is None else f"resources.stages.{stage}"
    if gpus > 1 and gpus != int(gpus):
        raise PlanError(
            "a worker takes a share of one GPU, or whole GPUs",
            where=f"{where}.num_gpus",
            expected=f"{math.floor(gpus)} or {math.ceil(gpus)}, or at most 1",
            got=f"{gpus:g}",
        )
    fewest, most = values["min_workers"], values["workers"]
    return WorkerResources(values["num_cpus"], gpus, values["memory"] or 0, fewest if most is None else min(fewest, most), most, where)


def all_worker_resources(resources: ResourcesSection, nodes: Sequence[NodeResources]) -> list[WorkerResources]:
    """Of stages without a section of their own, then of each stage that has one."""
    return [worker_resources(resources, stage, nodes) for stage in (None, *resources.stages)]


def count_fitting(nodes: Sequence[NodeResources], worker: WorkerResources) -> int:
    """The number of workers that fit on all ``nodes`` together. A share of a GPU never spans two GPUs."""
    return sum(_count_fitting_on(node, worker) for node in nodes)


def num_slots(nodes: Sequence[NodeResources], worker: WorkerResources) -> int:
    """The number of workers that run at once: those that fit, at least one, at most ``max_workers``."""
    fitting = max(1, count_fitting(nodes, worker))
    return fitting if worker.max_workers is None else min(fitting, worker.max_workers)


def local_cpus(resources: ResourcesSection) -> int:
    """CPUs of a cluster that is started on this machine: all of them, or those of the declared workers."""
    machine = os.cpu_count() or 1
    if resources.workers is None:
        return machine
    widest = max((stage.num_cpus or 0.0 for stage in resources.stages.values()), default=0.0)
    return max(math.ceil(resources.workers * resources.num_cpus), min(machine, math.ceil(widest)))


def check_schedulable(nodes: Sequence[NodeResources], resources: ResourcesSection) -> None:
    """PlanError, with both numbers, if fewer than ``min_workers`` workers of some stage fit: its units would wait forever."""
    for worker in all_worker_resources(resources, nodes):
        fitting = count_fitting(nodes, worker)
        if fitting >= worker.min_workers:
            continue
        if fitting:
            raise PlanError(
                "the cluster has no room for min_workers workers",
                where=f"{worker.where}.min_workers",
                expected=f"{worker.min_workers} workers of {worker} each",
                got=f"room for {fitting} on {len(nodes)} nodes",
                remedy=f"lower {worker.where}.min_workers or what each worker takes, or add nodes",
            )
        largest = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU", "memory")}
        memory = f" and {largest['memory']:,.0f} bytes of memory" if worker.memory_bytes else ""
        field = "num_gpus" if largest["GPU"] < worker.num_gpus else "num_cpus" if largest["CPU"] < worker.num_cpus else "memory"
        raise PlanError(
            "no node of the cluster can ever run a worker",
            where=f"{worker.where}.{field}",
            expected=f"a node with {worker}",
            got=f"at most {largest['CPU']:g} CPU and {largest['GPU']:g} GPU{memory} on any of {len(nodes)} nodes",
            remedy=f"lower {worker.where}.{field}{' (0 runs on CPUs)' if field == 'num_gpus' else ''}, or add such a node; "
            "on an autoscaling cluster, set GENREP_WAIT_FOR_NODES to the seconds that scaling up may take",
        )


def _count_fitting_on(node: NodeResources, worker: WorkerResources) -> int:
    # 1 / 0.1 in floating point may be 9.999...; ten shares of 0.1 must fit.
    fitting = math.floor(node.get("CPU", 0.0) / worker.num_cpus + 1e-9)
    if worker.num_gpus:
        gpus, share = int(node.get("GPU", 0.0)), worker.num_gpus
        fitting = min(fitting, gpus * math.floor(1 / share + 1e-9) if share <= 1 else gpus // int(share))
    if worker.memory_bytes:
        fitting = min(fitting, int(node.get("memory", 0.0) // worker.memory_bytes))
    return fitting
