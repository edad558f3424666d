"""The registry of stages, in the order in which they run.

It stands here, below the stages, so that an experiment can be validated without importing them. Use it as
:data:`genrep_dist.workflow.stages.STAGES`.
"""

from __future__ import annotations

from typing import Any

from genrep_dist.registry import Registry

STAGES: Registry[Any] = Registry("stage", "genrep_dist.stages", "genrep_dist.workflow.base:Stage", instances=True)
for _name, _class in (
    ("train", "train:TrainStage"),
    ("preconditioner", "preconditioner:PreconditionerStage"),
    ("gradients", "gradients:GradientsStage"),
    ("kernels", "kernels:KernelsStage"),
    ("influence", "derived:DerivedStage"),
    ("importances", "importances:ImportancesStage"),
    ("strongest", "strongest:StrongestStage"),
    ("attributions", "attributions:AttributionsStage"),
    ("diagonals", "diagonals:DiagonalsStage"),
    ("retrain", "retrain:RetrainStage"),
):
    STAGES.register(_name, f"genrep_dist.workflow.{_class}")
STAGES.register("doctor", "genrep_dist.diagnostics.first_seed:DoctorStage")
