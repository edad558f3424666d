"""Executors by name. Packages add their own with :func:`register_executor` or with an entry point in ``genrep_dist.executors``."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Protocol

from genrep_dist.config.sections import ResourcesSection
from genrep_dist.errors import ConfigError
from genrep_dist.executors.base import Executor

ENTRY_POINT_GROUP = "genrep_dist.executors"


class ExecutorFactory(Protocol):
    """What is registered: a class or function that makes an executor. ``address``: of a running cluster, or None."""

    def __call__(self, resources: ResourcesSection, *, address: str | None = None) -> Executor: ...


_FACTORIES: dict[str, ExecutorFactory | str] = {
    "serial": "genrep_dist.executors.serial:SerialExecutor.from_resources",
    "ray": "genrep_dist.executors.ray_executor:RayExecutor",
}


def register_executor(name: str, factory: ExecutorFactory | str) -> None:
    """Make ``factory`` available as ``gr.run(..., executor=name)``.

    A string ``module:object`` is imported when the executor is first used. ConfigError if another factory has this name.
    """
    if _FACTORIES.setdefault(name, factory) is not factory and _FACTORIES[name] != factory:
        raise ConfigError(
            "two executors have the same name", where=name, expected=f"{_FACTORIES[name]}", got=f"{factory}", remedy="choose another name"
        )


def executor_names() -> list[str]:
    """Names of all registered executors and of those that installed packages provide."""
    return sorted({*_FACTORIES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def make_executor(name: str, resources: ResourcesSection, *, address: str | None = None) -> Executor:
    """Make the executor registered as ``name``. ConfigError if there is none."""
    factory: Any = _FACTORIES.get(name)
    if factory is None:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            factory = point.load()
    if factory is None:
        raise ConfigError("no such executor", where="executor", expected=" or ".join(executor_names()), got=name)
    if isinstance(factory, str):
        module, _, path = factory.partition(":")
        factory = importlib.import_module(module)
        for attribute in path.split("."):
            factory = getattr(factory, attribute)
    executor: Executor = factory(resources, address=address)
    return executor
