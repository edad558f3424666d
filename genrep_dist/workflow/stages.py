"""The stages in the order in which they run.

Planner, driver, status, estimates and diagnostics loop over :data:`STAGES`. A package adds a stage with an entry point of the group
`genrep_dist.stages`, or with ``STAGES.register``; workers find it by the same registry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from genrep_dist.plan import Plan
from genrep_dist.registry import Registry
from genrep_dist.units import StageName
from genrep_dist.workflow.attributions import AttributionsStage
from genrep_dist.workflow.base import ArtifactSpec, Stage
from genrep_dist.workflow.derived import DerivedStage
from genrep_dist.workflow.diagonals import DiagonalsStage
from genrep_dist.workflow.gradients import GradientsStage
from genrep_dist.workflow.importances import ImportancesStage
from genrep_dist.workflow.kernels import KernelsStage
from genrep_dist.workflow.retrain import RetrainStage
from genrep_dist.workflow.train import TrainStage

STAGES: Registry[Stage[Any]] = Registry("stage", "genrep_dist.stages")
for _stage in (
    TrainStage(),
    GradientsStage(),
    KernelsStage(),
    DerivedStage(),
    ImportancesStage(),
    AttributionsStage(),
    DiagonalsStage(),
    RetrainStage(),
):
    STAGES.register(_stage.name, _stage)


def artifacts_of(plan: Plan, stage: StageName) -> Iterator[ArtifactSpec]:
    """The artifacts of one stage by its name."""
    return STAGES.get(stage).artifacts(plan)


def all_artifacts(plan: Plan) -> Iterator[tuple[Stage[Any], ArtifactSpec]]:
    """Every artifact of a plan with its stage."""
    for stage in STAGES.values():
        for artifact in stage.artifacts(plan):
            yield stage, artifact
