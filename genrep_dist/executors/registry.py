"""Executors by name. A package adds one with ``EXECUTORS.register`` or with an entry point of the group ``genrep_dist.executors``."""

from __future__ import annotations

from typing import Protocol

from genrep_dist.config.resources import ResourcesSection
from genrep_dist.executors.base import Executor
from genrep_dist.registry import Registry


class ExecutorFactory(Protocol):
    """What is registered: a class or function that makes an executor. ``address``: of a running cluster, or None."""

    def __call__(self, resources: ResourcesSection, *, address: str | None = None) -> Executor: ...


EXECUTORS: Registry[ExecutorFactory] = Registry("executor", "genrep_dist.executors")
EXECUTORS.register("serial", "genrep_dist.executors.serial:SerialExecutor.from_resources")
EXECUTORS.register("ray", "genrep_dist.executors.ray_executor:RayExecutor")
