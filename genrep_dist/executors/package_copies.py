"""The refusal of workers whose copy of this package is not the driver's."""

from __future__ import annotations

from genrep_dist.errors import ConfigError
from genrep_dist.executors.worker import PackageCopy


def require_same_copy(driver: PackageCopy, result: dict[str, float] | tuple[PackageCopy]) -> dict[str, float]:
    """The statistics that a worker returned. ConfigError if it returned its copy of the package instead, because that is another one."""
    if not isinstance(result, tuple):
        return result
    raise ConfigError(
        "a worker has another copy of this package, whose numbers may be others",
        where=f"node {result[0]['node']}",
        expected=f"the driver's copy: {_describe(driver)}",
        got=_describe(result[0]),
        remedy="install the same version on all nodes, or submit the package with the job (runtime_env), and run the same command again: "
        "that worker has computed nothing",
    )


def _describe(copy: PackageCopy) -> str:
    digest = f", sources {copy['digest'][:12]}" if copy["digest"] else ""
    return f"genrep_dist {copy['version']}{digest}, in {copy['folder']} on node {copy['node']}"
