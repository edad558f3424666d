"""Schedules of the learning rate by name. ``SCHEDULES.register`` or an entry point of the group ``genrep_dist.schedules`` adds one."""

from __future__ import annotations

from typing import Any

from genrep_dist.core.schedules.base import Schedule
from genrep_dist.core.schedules.constant import Constant
from genrep_dist.core.schedules.cosine import Cosine
from genrep_dist.core.schedules.linear import Linear
from genrep_dist.core.schedules.one_cycle import OneCycle
from genrep_dist.core.schedules.step import Step
from genrep_dist.extension import build
from genrep_dist.registry import Registry

__all__ = ["SCHEDULES", "Schedule", "make_schedule"]

SCHEDULES: Registry[type[Schedule]] = Registry("schedule", "genrep_dist.schedules", Schedule)
SCHEDULES.register("constant", Constant)
SCHEDULES.register("cosine", Cosine)
SCHEDULES.register("linear", Linear)
SCHEDULES.register("step", Step)
SCHEDULES.register("one_cycle", OneCycle)


def make_schedule(recipe: Any) -> Schedule:
    """The schedule that ``recipe`` names, with its settings. Raises ConfigError for an unknown name."""
    return build(SCHEDULES.get(recipe.schedule), recipe)
