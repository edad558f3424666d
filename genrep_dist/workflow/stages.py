"""The stages in the order in which they run.

Planner, driver, status, estimates and diagnostics loop over :data:`STAGES`. A package adds a stage with an entry point of the group
`genrep_dist.stages`, or with ``STAGES.register``; workers find it by the same registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from genrep_dist.config.stages import STAGES as _STAGES
from genrep_dist.extension import require_returned, returned
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.registry import Registry
from genrep_dist.units import StageName
from genrep_dist.workflow.base import ArtifactSpec, Stage

STAGES: Registry[Stage[Any]] = _STAGES


def artifacts_of(plan: Plan, stage: StageName) -> Iterator[ArtifactSpec]:
    """The artifacts of one stage by its name."""
    found = STAGES.get(stage)
    artifacts: object = found.artifacts(plan)
    require_returned(isinstance(artifacts, Iterable), found, "artifacts", "ArtifactSpecs", artifacts)
    for artifact in cast("Iterable[object]", artifacts):
        yield returned(ArtifactSpec, found, "artifacts", artifact)


def all_artifacts(plan: Plan) -> Iterator[tuple[Stage[Any], ArtifactSpec]]:
    """Every artifact of a plan with its stage."""
    for stage in STAGES.values():
        for artifact in artifacts_of(plan, stage.name):
            yield stage, artifact


def stage_plans(plan: Plan) -> Iterator[StagePlan]:
    """The lines of the plan, one for each stage that has something to do."""
    for stage in STAGES.values():
        line = stage.plan(plan)
        if line is not None:
            fits = isinstance(line, StagePlan) and line.name == stage.name
            require_returned(fits, stage, "plan", f"None, or a StagePlan of stage {stage.name}", line)
            yield line
