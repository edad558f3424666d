"""How many workers the nodes of a cluster can hold at once, and refusing what none of them ever can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from genrep_dist.config.sections import ResourcesSection, StageName
from genrep_dist.errors import PlanError

Resources = Mapping[str, float]
"""What one node has, by the names of Ray: ``CPU``, ``GPU``, ``memory`` (bytes)."""


@dataclass(frozen=True)
class Demand:
    """What one worker takes, and between how many workers (``least``, ``most``) there are at once; ``where`` it was declared."""

    num_cpus: float
    num_gpus: float
    memory_bytes: int
    least: int
    most: int | None
    where: str

    def text(self) -> str:
        memory = f" and {self.memory_bytes:,} bytes of memory" if self.memory_bytes else ""
        return f"{self.num_cpus:g} CPU and {self.num_gpus:g} GPU{memory}"


def demand_of(resources: ResourcesSection, stage: StageName | None, nodes: Sequence[Resources]) -> Demand:
    """What a worker of ``stage`` takes (of any stage without a declaration of its own: None), on these ``nodes``.

    Where no GPUs are declared a worker takes one if any node has one and ``resources.device`` does not decline it.

    Raises PlanError for more than one GPU that is no whole number: no worker can be given that.
    """
    own = resources.stages.get(stage) if stage is not None else None
    declared = {name: getattr(own, name) for name in type(own).model_fields} if own is not None else {}
    chosen = {name: value if value is not None else getattr(resources, name) for name, value in declared.items()}
    values = {name: chosen.get(name, getattr(resources, name)) for name in ("num_cpus", "num_gpus", "memory", "min_workers", "workers")}
    gpus = values["num_gpus"]
    if gpus is None:
        gpus = 1.0 if resources.device != "cpu" and any(node.get("GPU", 0.0) >= 1 for node in nodes) else 0.0
    where = f"resources.stages.{stage}" if own is not None else "resources"
    if gpus > 1 and gpus != int(gpus):
        raise PlanError(
            "a worker takes a share of one GPU, or whole GPUs",
            where=f"{where}.num_gpus",
            expected=f"{math.floor(gpus)} or {math.ceil(gpus)}, or at most 1",
            got=f"{gpus:g}",
        )
    least, most = values["min_workers"], values["workers"]
    return Demand(values["num_cpus"], gpus, values["memory"] or 0, least if most is None else min(least, most), most, where)


def all_demands(resources: ResourcesSection, nodes: Sequence[Resources]) -> list[Demand]:
    """The general demand and that of each stage that has its own."""
    return [demand_of(resources, stage, nodes) for stage in (None, *resources.stages)]


def workers_held(nodes: Sequence[Resources], demand: Demand) -> int:
    """Workers that fit on ``nodes`` together. A fraction of a GPU never spans two GPUs."""
    return sum(_held(node, demand) for node in nodes)


def slots(nodes: Sequence[Resources], demand: Demand) -> int:
    """Workers at once: those that fit, at most those that were asked for, and one at least."""
    held = max(1, workers_held(nodes, demand))
    return held if demand.most is None else min(held, demand.most)


def unschedulable(nodes: Sequence[Resources], demands: Sequence[Demand]) -> PlanError | None:
    """Why work would wait for ever, with both numbers: fewer workers of a demand fit than there must be. None when all fit."""
    for demand in demands:
        held = workers_held(nodes, demand)
        if held >= demand.least:
            continue
        if held:
            return PlanError(
                "the cluster cannot hold as many workers as there must be",
                where=f"{demand.where}.min_workers",
                expected=f"{demand.least} workers of {demand.text()} each",
                got=f"room for {held} on {len(nodes)} nodes",
                remedy=f"lower {demand.where}.min_workers or what each worker takes, or add nodes",
            )
        best = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU", "memory")}
        memory = f" and {best['memory']:,.0f} bytes of memory" if demand.memory_bytes else ""
        lacking = "num_gpus" if best["GPU"] < demand.num_gpus else "num_cpus" if best["CPU"] < demand.num_cpus else "memory"
        return PlanError(
            "no node of the cluster can ever hold a worker",
            where=f"{demand.where}.{lacking}",
            expected=f"a node with {demand.text()}",
            got=f"at most {best['CPU']:g} CPU and {best['GPU']:g} GPU{memory} on any of {len(nodes)} nodes",
            remedy=f"lower {demand.where}.{lacking}{' (0 works on CPUs)' if lacking == 'num_gpus' else ''}, or add such a node; "
            "on a cluster that grows by itself, set GENREP_WAIT_FOR_NODES to the seconds that it may take",
        )
    return None


def refuse_unschedulable(nodes: Sequence[Resources], resources: ResourcesSection) -> None:
    """PlanError for an experiment whose work would wait for ever on these nodes."""
    error = unschedulable(nodes, all_demands(resources, nodes))
    if error is not None:
        raise error


def _held(node: Resources, demand: Demand) -> int:
    # 1 / 0.1 may be 9.999...: a share of 0.1 is meant to fit ten times.
    most = math.floor(node.get("CPU", 0.0) / demand.num_cpus + 1e-9)
    if demand.num_gpus:
        gpus, share = int(node.get("GPU", 0.0)), demand.num_gpus
        most = min(most, gpus * math.floor(1 / share + 1e-9) if share <= 1 else gpus // int(share))
    if demand.memory_bytes:
        most = min(most, int(node.get("memory", 0.0) // demand.memory_bytes))
    return most
