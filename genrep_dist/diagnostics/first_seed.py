"""The unit of work that checks a run at its beginning: the first seed's original model, before the retrainings.

It runs where the other units run, so that what it computes is what they compute: on the same machines, with the same device and threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, ClassVar

from genrep_dist.diagnostics.finding import Finding
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.results import Run
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.records import reading_record
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Stage
from genrep_dist.workflow.user_code import AllowedCode

if TYPE_CHECKING:
    from genrep_dist.workflow.context import WorkerContext

SAMPLES = 8
MOST_BACKWARD_PASSES = 64
"""Single backward passes of one check: fewer samples of a model with many outputs."""


@dataclass(frozen=True)
class DoctorUnit(Unit):
    """Check the original model of one seed; ``plan``: of the experiment with that seed alone. Writes the findings to the store."""

    plan: Plan = field(compare=False, repr=False)
    question: str
    stage: ClassVar[str] = "doctor"


class DoctorStage(Stage[DoctorUnit]):
    """It has no artifacts: the runner runs its unit once an experiment."""

    name = "doctor"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        del plan
        return iter(())

    def run(self, unit: DoctorUnit, context: WorkerContext) -> dict[str, float]:
        from genrep_dist.diagnostics.context import CheckContext
        from genrep_dist.diagnostics.run_checks import diagnose_first_seed

        samples = max(1, min(SAMPLES, MOST_BACKWARD_PASSES // unit.plan.shape.num_outputs))
        findings = diagnose_first_seed(CheckContext(_FirstSeedRun(unit.plan, context), samples, before_retraining=True))
        record = {"question": unit.question, "findings": [asdict(found) for found in findings]}
        context.store.objects.put_json(ExperimentPaths(unit.plan.experiment.name).doctor, record)
        return {"seconds": context.elapsed()}

    def plan(self, plan: Plan) -> StagePlan | None:
        del plan
        return None


def read_findings(store: Store, name: str, question: str) -> list[Finding] | None:
    """The findings about the experiment ``name`` with the digest ``question``; None if it was not checked."""
    path = ExperimentPaths(name).doctor
    if not store.objects.exists(path):
        return None
    with reading_record(store.objects, path):
        record = store.objects.get_json(path)
        return [Finding(**found) for found in record["findings"]] if record["question"] == question else None


class _FirstSeedRun(Run):
    """A run of one seed, which has an original model and no record."""

    def __init__(self, plan: Plan, worker: WorkerContext) -> None:
        self.store, self.name, self.plan = worker.store, plan.experiment.name, plan
        self.record = {"data": plan.keys.data, "loss": worker.loss.name, "recipe": plan.keys.recipe}
        self._code = AllowedCode(running=True)
        self._unknown_names = None
        self._worker = worker

    @property
    def context(self) -> WorkerContext:
        return self._worker
