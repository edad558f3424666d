"""Whether a machine and its disk can hold an experiment."""

from __future__ import annotations

import math
from collections.abc import Callable

import psutil

from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan
from genrep_dist.store import Store
from genrep_dist.units import StageName
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.status import stage_status


def check_room(plan: Plan, store: Store, slots_for: Callable[[StageName], int], memory_bytes: int) -> None:
    """Refuse what the memory budget, the disk or the ``memory_bytes`` of all workers' machines cannot hold. PlanError names both numbers.

    ``slots_for(stage)``: workers of a stage at once.
    """
    if store.objects.root is not None:
        free = psutil.disk_usage(str(store.objects.root)).free
        needed = plan.bytes_written
        if needed > free:
            # What an earlier run has written takes no room any more.
            shares = {status.name: status.missing_share for status in stage_status(plan, store)}
            needed = math.ceil(sum(stage.bytes_written * shares[stage.name] for stage in plan.stages))
        if needed > free:
            raise PlanError(
                "the store's disk cannot hold this experiment",
                where=str(store.objects.root),
                expected=f"{needed:,} bytes free",
                got=f"{free:,} bytes",
                remedy="choose a larger --store, fewer seeds, or resources.features: stream",
            )
    for stage in plan.stages:
        STAGES.get(stage.name).check_budget(plan)
        slots = slots_for(stage.name)
        if stage.peak_bytes * slots > memory_bytes:
            raise PlanError(
                f"{slots} workers cannot hold stage {stage.name} in their machines' memory",
                where="resources.workers, resources.memory_budget",
                expected=f"{stage.peak_bytes * slots:,} bytes",
                got=f"{memory_bytes:,} bytes",
                remedy="lower resources.workers or resources.memory_budget",
            )
