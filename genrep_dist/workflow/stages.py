"""The stages in the order in which they run.

Planner, driver, status, estimates and diagnostics loop over :data:`STAGES`. A package adds a stage with an entry point of the group
`genrep_dist.stages`, or with ``STAGES.register``; workers find it by the same registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genrep_dist.config.stages import STAGES as _STAGES
from genrep_dist.plan import Plan
from genrep_dist.registry import Registry
from genrep_dist.units import StageName
from genrep_dist.workflow.base import ArtifactSpec, Stage

STAGES: Registry[Stage[Any]] = _STAGES


def artifacts_of(plan: Plan, stage: StageName) -> Iterator[ArtifactSpec]:
    """The artifacts of one stage by its name."""
    return STAGES.get(stage).artifacts(plan)


def all_artifacts(plan: Plan) -> Iterator[tuple[Stage[Any], ArtifactSpec]]:
    """Every artifact of a plan with its stage."""
    for stage in STAGES.values():
        for artifact in stage.artifacts(plan):
            yield stage, artifact
