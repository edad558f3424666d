"""Stage importances: alpha solved for on a gram (Eq. 5, Eq. 9). Other importances come with the trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from genrep_dist.config import Experiment
from genrep_dist.config.keys import Keys
from genrep_dist.core.importances.base import OutputImportance, SolvedImportance, TrackedImportance
from genrep_dist.errors import MethodError
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, SampleAxis, Stage
from genrep_dist.workflow.blocks import cached_bytes, tile_bytes
from genrep_dist.workflow.gradients import is_held
from genrep_dist.workflow.primal import PrimalFeatures, feature_gram, features_bytes, pass_seconds, primal_features

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.importances.base import GramOperator
    from genrep_dist.core.losses import Loss
    from genrep_dist.problems.protocol import Dataset
    from genrep_dist.workflow.context import WorkerContext

VECTORS_HELD = 12
"""Vectors (N, C) float64 that a solver holds at once."""


@dataclass(frozen=True)
class ImportanceUnit(Unit):
    """An importance that is solved for on one gram, which is read within ``memory_budget_bytes``.

    ``features``: products with K are made of the kernel's features instead.
    """

    importance: str
    kernel: str
    epoch: int
    memory_budget_bytes: int
    features: PrimalFeatures | None = None
    stage: ClassVar[str] = "importances"

    @property
    def label(self) -> str:
        return f"{self.importance} seed={self.seed} {self.kernel} epoch={self.epoch}"


class ImportancesStage(Stage[ImportanceUnit]):
    name = "importances"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        for seed in plan.experiment.seeds:
            for importance, kernel, epoch in plan.needs.solved:
                unit = importance_unit(plan, seed, importance, kernel, epoch)
                yield ArtifactSpec(importance, plan.keys.solved(importance, seed, kernel, epoch), seed, (unit,))

    def run(self, unit: ImportanceUnit, context: WorkerContext) -> dict[str, float]:
        """Solve for alpha (N, C) float64 and write it with its certificate. ConvergenceError instead of a bad alpha."""
        from genrep_dist.workflow.context import to_numpy
        from genrep_dist.workflow.returned import checked_certificate, checked_pair, checked_tensor

        importance = solved_importance(context, unit.importance)
        inputs = _Inputs(context, unit.seed)
        where, gram = f"importance {unit.importance}, {unit.label}", gram_operator(unit, context)
        solved, certificate = checked_pair(importance.solve(gram, inputs), importance, "solve", where)
        alpha = checked_tensor(solved, inputs.outputs.shape, importance, "solve", where).double()
        certificate = checked_certificate(certificate, "efficiency_gap", importance, "solve", where)
        certificate |= {} if unit.features is None else {"system": "primal"}
        key = context.keys.solved(unit.importance, unit.seed, unit.kernel, unit.epoch)
        artifact = context.store.artifact(unit.importance, key)
        artifact.write("alpha", to_numpy(alpha), ("train", "output"))
        about = {"seed": unit.seed, "kernel": unit.kernel, "epoch": unit.epoch}
        artifact.commit({**about, "certificate": certificate, "seconds": context.elapsed()})
        return {"efficiency_gap": float(certificate["efficiency_gap"])}

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        del kind
        return {"alpha": ("train", 0)}

    def plan(self, plan: Plan) -> StagePlan | None:
        solved, seeds, values = plan.needs.solved, len(plan.experiment.seeds), plan.shape.num_train * plan.shape.num_outputs
        if not solved:
            return None
        what = ", ".join(_summary(plan, *one) for one in solved)
        planned = [_planned(plan, importance) for importance, _, _ in solved]
        extra = max(one.extra_bytes(values) + one.curvature_copies * 8 * values * plan.shape.num_outputs for one in planned)
        extra += cached_bytes(plan)
        work = [features_bytes(plan, one[1]) if one in plan.needs.primal else tile_bytes(plan, one[1]) for one in solved]
        peak = VECTORS_HELD * 8 * values + extra + max(work)
        return StagePlan(self.name, what, seeds * len(solved), seeds * len(solved) * 8 * values, peak)

    def seconds(self, plan: Plan, rates: Rates) -> float:
        multiply_adds, passing = 0, 0.0
        for importance, kernel, epoch in plan.needs.solved:
            products, rows = _planned(plan, importance).gram_products(plan.keys.epochs), plan.shape.gram_rows(kernel)
            if (importance, kernel, epoch) in plan.needs.primal:
                multiply_adds += products * 2 * rows * plan.shape.kernels[kernel].row_width
                passing += pass_seconds(plan, kernel, epoch, products, rates)
            else:
                multiply_adds += products * rows**2
        return len(plan.experiment.seeds) * multiply_adds / rates.multiply_adds_per_second + passing


class _Inputs:
    """:class:`~genrep_dist.core.importances.base.SolveInputs` of one seed.

    Whatever the kernel's checkpoint, the function that is projected is the final model: it is what is explained.
    """

    def __init__(self, context: WorkerContext, seed: int) -> None:
        from genrep_dist.training.randomness import Randomness

        self.loss: Loss = context.loss
        self.outputs: Tensor = context.train_outputs(seed, context.keys.epochs).double()
        self.recipe: Any = context.recipe
        self._randomness = Randomness(seed)

    def epoch_orders(self, epochs: int) -> list[Tensor]:
        return [self._randomness.order(epoch, len(self.outputs)) for epoch in range(1, epochs + 1)]


class ModelsSource(Protocol):
    """The part of a :class:`~genrep_dist.workflow.context.WorkerContext` that :func:`alpha` reads."""

    store: Store
    keys: Keys
    loss: Loss
    train: Dataset

    @property
    def experiment(self) -> Experiment: ...
    def train_artifact(self, seed: int) -> Artifact: ...
    def train_outputs(self, seed: int, epoch: int) -> Tensor: ...


def alpha(context: ModelsSource, name: str, seed: int, kernel: str, epoch: int) -> Tensor:
    """Alpha (N, C) float64 of an importance: of the model at ``epoch``, or solved for on the gram of ``kernel`` there."""
    import torch

    from genrep_dist.workflow.returned import checked_tensor

    importance = context.experiment.importance(name)
    if isinstance(importance, TrackedImportance):
        artifact = context.train_artifact(seed)
        if importance.array in artifact.manifest().get("absent", ()):
            raise MethodError(
                "the steps of training were not tracked",
                where=f"importance {name}, seed {seed}",
                expected="a training function that reports its steps",
                got="no call of run.step in train()",
                remedy="call `run.step(ids, outputs, rate)` at each step of the optimizer",
            )
        return torch.from_numpy(artifact.read(importance.array))
    if isinstance(importance, OutputImportance):
        outputs = context.train_outputs(seed, epoch)
        computed = importance.compute(context.loss, outputs, context.train.targets.cpu())
        return checked_tensor(computed, outputs.shape, importance, "compute", f"importance {name}, seed {seed}, epoch {epoch}").double()
    return torch.from_numpy(context.store.artifact(name, context.keys.solved(name, seed, kernel, epoch)).read("alpha"))


def importance_unit(plan: Plan, seed: int, importance: str, kernel: str, epoch: int) -> ImportanceUnit:
    is_primal = (importance, kernel, epoch) in plan.needs.primal
    features = primal_features(plan, kernel, epoch) if is_primal else None
    return ImportanceUnit(seed, importance, kernel, epoch, plan.budget_bytes, features)


def gram_operator(unit: ImportanceUnit, context: WorkerContext) -> GramOperator:
    """Products with the K that a unit's importance is solved for on: from its stored gram, or from features."""
    if unit.features is not None:
        return feature_gram(unit.features, context, unit.kernel, unit.seed, unit.epoch)
    from genrep_dist.workflow.gram import Gram

    artifact = context.store.artifact("gram", context.keys.gram(unit.seed, unit.kernel, unit.epoch))
    return Gram(artifact, unit.memory_budget_bytes, len(context.train.ids))


def _summary(plan: Plan, importance: str, kernel: str, epoch: int) -> str:
    """An importance and its kernel, with its system where that is not the default."""
    text, rows, width = f"{importance} on {kernel} (epoch {epoch})", plan.shape.gram_rows(kernel), plan.shape.kernels[kernel].row_width
    if _planned(plan, importance).system == "dual":
        return text
    if (importance, kernel, epoch) not in plan.needs.primal:
        return f"{text}, dual system: a gram of {rows:,} rows" + (f", features of {width:,} numbers" if width else ", and no features")
    held = "held in memory" if is_held(plan, kernel) else "read" if (kernel, epoch) in plan.stored_features else "computed"
    return f"{text}, primal system: features of {width:,} numbers, {held} for each product, instead of a gram of {rows:,} rows"


def solved_importance(context: WorkerContext, name: str) -> SolvedImportance:
    importance = context.experiment.importance(name)
    assert isinstance(importance, SolvedImportance)
    return importance


def _planned(plan: Plan, name: str) -> SolvedImportance:
    importance = plan.experiment.importance(name)
    assert isinstance(importance, SolvedImportance)
    return importance
