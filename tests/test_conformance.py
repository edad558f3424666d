"""Every metric, stage, importance, target and optimizer that ships, and one of each from outside, in the suites that third parties use."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from genrep_dist.config.sections import DescentSection, SurrogateSection
from genrep_dist.core.function_targets import LogProbabilityTarget, LossTarget, MarginTarget, ProbabilityTarget, ProblemTarget
from genrep_dist.core.importances import IMPORTANCES
from genrep_dist.core.importances.base import OutputImportance, SolvedImportance
from genrep_dist.core.importances.descent import KernelDescent
from genrep_dist.core.importances.same_label import SameLabel
from genrep_dist.core.importances.surrogate import SurrogateDerivative
from genrep_dist.core.importances.target import TargetDerivative
from genrep_dist.core.targets import TARGETS, LogitTarget, Target
from genrep_dist.evaluation.metrics.base import Metric, registered_metrics
from genrep_dist.evaluation.metrics.brittleness import Brittleness
from genrep_dist.evaluation.metrics.deletion import Deletion
from genrep_dist.evaluation.metrics.lds import LinearDatamodeling
from genrep_dist.evaluation.metrics.loo import LeaveOneOut
from genrep_dist.evaluation.metrics.mislabel import Mislabel
from genrep_dist.evaluation.metrics.relabel import Relabelling
from genrep_dist.problems.protocol import Recipe
from genrep_dist.testing import MetricTests, OptimizerTests, OutputImportanceTests, SolvedImportanceTests, StageTests, TargetTests
from genrep_dist.training.optimizers import OPTIMIZERS
from genrep_dist.training.optimizers.adam import Adam
from genrep_dist.training.optimizers.adamw import AdamW
from genrep_dist.training.optimizers.base import Optimizer
from genrep_dist.training.optimizers.rmsprop import RMSprop
from genrep_dist.training.optimizers.sgd import SGD
from genrep_dist.workflow.base import Stage
from genrep_dist.workflow.stages import STAGES
from tests.outside_metrics import SelfRemoval
from tests.test_extension_errors import Solved
from tests.test_extensions import NormStage, RunnerUp, SignImportance
from tests.test_targets import Quadratic
from tests.training.test_optimizers import ToyAdam

RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=0.1)
FLIPPED = {"problem": {"name": "tests.toys:Blobs", "flip_labels": {"share": 0.2}}}
# One run serves all of these.
MEASURED: dict[str, Any] = {
    **FLIPPED,
    "deletion": {"fractions": [0.0, 0.25], "signs": ["negative", "positive"], "retrain": "fresh", "replicates": 2},
    "lds": {"subsets": 3},
    "loo": {"samples": 3},
    "relabel": {"samples": 6, "size": 2},
    "brittleness": {"fractions": [0.1, 0.3]},
    "resources": {"features": "store"},
}


class TestDeletion(MetricTests):
    metric: ClassVar[type[Metric]] = Deletion
    fields = MEASURED


class TestLinearDatamodeling(TestDeletion):
    metric = LinearDatamodeling


class TestLeaveOneOut(TestDeletion):
    metric = LeaveOneOut


class TestRelabelling(TestDeletion):
    metric = Relabelling


class TestBrittleness(TestDeletion):
    metric = Brittleness


class TestMislabel(TestDeletion):
    metric = Mislabel


class TestMetricFromOutside(MetricTests):
    metric = SelfRemoval
    fields: ClassVar[dict[str, Any]] = {"metrics": {"self_removal": {"count": 3}}}


class TestTrainStage(StageTests):
    stage: ClassVar[type[Stage[Any]]] = type(STAGES.get("train"))
    fields = MEASURED


class TestGradientsStage(TestTrainStage):
    stage = type(STAGES.get("gradients"))


class TestKernelsStage(TestTrainStage):
    stage = type(STAGES.get("kernels"))


class TestDerivedStage(TestTrainStage):
    stage = type(STAGES.get("influence"))


class TestImportancesStage(TestTrainStage):
    stage = type(STAGES.get("importances"))


class TestAttributionsStage(TestTrainStage):
    stage = type(STAGES.get("attributions"))


class TestStrongestStage(TestTrainStage):
    stage = type(STAGES.get("strongest"))
    fields: ClassVar[dict[str, Any]] = {"methods": ["ntk-final/target", "ntk-final/surrogate", "random"], "attributions": {"top": 30}}


class TestDiagonalsStage(TestTrainStage):
    stage = type(STAGES.get("diagonals"))


class TestRetrainStage(TestTrainStage):
    stage = type(STAGES.get("retrain"))


class TestPreconditionerStage(TestTrainStage):
    stage = type(STAGES.get("preconditioner"))
    fields: ClassVar[dict[str, Any]] = {"methods": ["ntk-adam-final/tracking", "random"], "recipe": {"optimizer": "adam"}}


class TestStageFromOutside(StageTests):
    stage = NormStage


class TestTargetDerivative(OutputImportanceTests):
    def make_importance(self) -> OutputImportance:
        return TargetDerivative()


class TestSameLabel(OutputImportanceTests):
    def make_importance(self) -> OutputImportance:
        return SameLabel()


class TestOutputImportanceFromOutside(OutputImportanceTests):
    def make_importance(self) -> OutputImportance:
        return SignImportance()


class TestSurrogateDerivative(SolvedImportanceTests):
    def make_importance(self) -> SolvedImportance:
        return SurrogateDerivative(SurrogateSection.model_validate({}))


class TestKernelDescent(SolvedImportanceTests):
    def make_importance(self) -> SolvedImportance:
        return KernelDescent(DescentSection.model_validate({}))


class TestKernelDescentOnAllSamples(SolvedImportanceTests):
    def make_importance(self) -> SolvedImportance:
        return KernelDescent(DescentSection.model_validate({"batches": "full", "learning_rate": 0.1}))


class TestSolvedImportanceFromOutside(SolvedImportanceTests):
    def make_importance(self) -> SolvedImportance:
        return Solved()


class TestPredictedLogit(TargetTests):
    def make_target(self) -> Target:
        return LogitTarget("predicted")


class TestDeclaredLogit(TargetTests):
    def make_target(self) -> Target:
        return LogitTarget(1)


class TestMargin(TargetTests):
    def make_target(self) -> Target:
        return MarginTarget("predicted")


class TestLogProbability(TargetTests):
    def make_target(self) -> Target:
        return LogProbabilityTarget("predicted")


class TestProbability(TargetTests):
    def make_target(self) -> Target:
        return ProbabilityTarget(0)


class TestLoss(TargetTests):
    def make_target(self) -> Target:
        return LossTarget("label")


class TestProblemTarget(TargetTests):
    def make_target(self) -> Target:
        return ProblemTarget("label", Quadratic())


class TestTargetFromOutside(TargetTests):
    def make_target(self) -> Target:
        return RunnerUp("predicted")


class TestPlainSGD(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return SGD(RECIPE)


class TestMomentum(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return SGD(Recipe(epochs=1, batch_size=8, learning_rate=0.1, momentum=0.9, weight_decay=0.01))


class TestAdam(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return Adam(Recipe(epochs=1, batch_size=8, learning_rate=0.1, optimizer="adam", amsgrad=True))


class TestAdamW(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return AdamW(Recipe(epochs=1, batch_size=8, learning_rate=0.1, optimizer="adamw"))


class TestRMSprop(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return RMSprop(Recipe(epochs=1, batch_size=8, learning_rate=0.1, optimizer="rmsprop", momentum=0.5, centered=True))


class TestOptimizerFromOutside(OptimizerTests):
    def make_optimizer(self) -> Optimizer:
        return ToyAdam(RECIPE)


# The doctor's stage only writes findings.
STAGES_WITH_ARTIFACTS = [name for name in STAGES if name != "doctor"]


@pytest.mark.parametrize(
    ("suite", "names", "shipped"),
    [
        (MetricTests, {kind.metric.name for kind in TestDeletion.__subclasses__()} | {"deletion"}, [m.name for m in registered_metrics()]),
        (StageTests, {kind.stage.name for kind in TestTrainStage.__subclasses__()} | {"train"}, STAGES_WITH_ARTIFACTS),
        (TargetTests, {"logit", "margin", "log_probability", "probability", "loss", "problem"}, list(TARGETS)),
        (OptimizerTests, {"sgd", "adam", "adamw", "rmsprop"}, list(OPTIMIZERS)),
        # Tracking is computed by the loop of training, not by its class.
        (SolvedImportanceTests, {"target", "same-label", "surrogate", "descent", "tracking"}, list(IMPORTANCES)),
    ],
)
def test_all_that_ships_is_here(suite: type, names: set[str], shipped: list[str]) -> None:
    assert names >= set(shipped), suite.__name__
