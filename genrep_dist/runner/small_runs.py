"""Whether a run is so small that starting Ray takes longer than its work."""

from __future__ import annotations

import os
from collections.abc import Mapping

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.plan import Plan
from genrep_dist.provenance import in_ray
from genrep_dist.units import StageName
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.context import pick_device
from genrep_dist.workflow.estimates import estimate_stages, measure_rates
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.status import stage_status

SMALL_SECONDS = 60.0
"""Seconds of work of one process, below which a run is done in one."""
_ABOUT_WORKERS = ("workers", "min_workers", "num_cpus", "num_gpus", "memory", "stages", "unit_timeout")
"""Fields of ``resources`` that say something about workers: who declares one wants them."""


def small_work_seconds(prepared: PreparedExperiment) -> float | None:
    """Seconds of one process for what the store lacks, if these are fewer than SMALL_SECONDS; else None.

    None without a measurement for a plan that is not done in one process whatever its size (:func:`may_be_small`). A measurement takes two
    or three seconds.
    """
    plan = prepared.plan
    if not may_be_small(plan):
        return None
    status = stage_status(plan, prepared.store, look_up=True)
    return small_seconds(plan, measure_rates(prepared), {stage.name: stage.missing_share for stage in status})


def small_seconds(plan: Plan, rates: Rates, missing: Mapping[StageName, float]) -> float | None:
    """Seconds of one process for the ``missing`` shares of the stages, if these are fewer than SMALL_SECONDS; else None."""
    total = sum(estimate_stages(plan, rates, 1, missing).values())
    return total if total < SMALL_SECONDS else None


def may_be_small(plan: Plan) -> bool:
    """Whether the plan is done in one process if it has little work.

    False where workers are wanted or the work cannot be estimated in some seconds: inside a Ray job or with RAY_ADDRESS, with resources
    that are declared for workers, on a GPU, for a training function of the problem's own, and where the number of seeds or of settings
    follows from results.
    """
    experiment = plan.experiment
    fields = ResourcesSection.model_fields
    declared = any(getattr(experiment.resources, name) != fields[name].get_default(call_default_factory=True) for name in _ABOUT_WORKERS)
    if declared or in_ray() or os.environ.get("RAY_ADDRESS"):
        return False
    if plan.shape.own_training or experiment.stop is not None or experiment.tune is not None:
        return False
    return pick_device(experiment.resources.device).type == "cpu"
