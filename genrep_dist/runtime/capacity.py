"""How many workers the nodes of a cluster can hold at once, and refusing what none of them ever can."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from genrep_dist.errors import PlanError

Resources = Mapping[str, float]
"""What one node has, by the names of Ray: ``CPU``, ``GPU``."""


def workers_held(nodes: Sequence[Resources], num_gpus: float) -> int:
    """Workers of one CPU and ``num_gpus`` GPUs each that fit on ``nodes`` together. A fraction of a GPU never spans two GPUs.

    Raises PlanError for more than one GPU that is no whole number: no worker can be given that.
    """
    if num_gpus > 1 and num_gpus != int(num_gpus):
        raise PlanError(
            "a worker takes a share of one GPU, or whole GPUs",
            where="resources.num_gpus",
            expected=f"{math.floor(num_gpus)} or {math.ceil(num_gpus)}, or at most 1",
            got=f"{num_gpus:g}",
        )
    return sum(_held(node, num_gpus) for node in nodes)


def refuse_unschedulable(nodes: Sequence[Resources], num_gpus: float) -> None:
    """PlanError with both numbers when no node can hold a single worker: its work would wait for ever."""
    if workers_held(nodes, num_gpus):
        return
    cpus, gpus = (max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("CPU", "GPU"))
    raise PlanError(
        "no node of the cluster can ever hold a worker",
        where="resources.num_gpus" if gpus < num_gpus else "the cluster",
        expected=f"a node with 1 CPU and {num_gpus:g} GPU",
        got=f"at most {cpus:g} CPU and {gpus:g} GPU on any of {len(nodes)} nodes",
        remedy="lower resources.num_gpus (0 works on CPUs), or add such a node"
        if gpus < num_gpus
        else "add a node with CPUs; on a cluster that grows by itself, set GENREP_WAIT_FOR_NODES to the seconds that it may take",
    )


def _held(node: Resources, num_gpus: float) -> int:
    cpus, gpus = int(node.get("CPU", 0.0)), int(node.get("GPU", 0.0))
    if not num_gpus:
        return cpus
    # 1 / 0.1 may be 9.999...: a share of 0.1 is meant to fit ten times.
    by_gpu = gpus * math.floor(1 / num_gpus + 1e-9) if num_gpus <= 1 else gpus // int(num_gpus)
    return min(cpus, by_gpu)
