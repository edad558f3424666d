"""Stage diagonals: K(x_i, x_i) of every training sample, from which self-influence is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genrep_dist.core.kernels.base import DerivedKernel, FeatureKernel
from genrep_dist.core.methods import Method
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.seeds import derive_seed
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, SampleAxis, Stage
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.derived import Inputs, peak_bytes, write_diagonal
from genrep_dist.workflow.gradients import features_seconds
from genrep_dist.workflow.importances import alpha

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.workflow.context import WorkerContext

PAIRWISE_ROWS = 64
"""A pairwise kernel is computed for a whole block, of which the diagonal is used."""


@dataclass(frozen=True)
class DiagonalUnit(Unit):
    """K_c(x_i, x_i) of every training sample with the logit of its own label (N, C), in blocks of ``block`` rows."""

    kernel: str
    epoch: int
    block: int
    stage: ClassVar[str] = "diagonals"

    @property
    def label(self) -> str:
        return f"diagonal seed={self.seed} {self.kernel} epoch={self.epoch}"


class DiagonalsStage(Stage[DiagonalUnit]):
    name = "diagonals"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.needs.diagonals:
                unit = DiagonalUnit(seed, kernel, epoch, plan.block_rows.get(kernel, plan.dense_rows))
                yield ArtifactSpec("diagonal", plan.keys.diagonal(seed, kernel, epoch), seed, (unit,))

    def run(self, unit: DiagonalUnit, context: WorkerContext) -> dict[str, float]:
        """Write K_c(x_i, x_i) (N, C) float64: how much of output c's derivative reaches the logit of sample i's own label.

        A derived kernel's diagonal is written with the kernel, of one factorisation; here only if it was lost.
        """
        import torch

        from genrep_dist.core.self_influence import own_outputs
        from genrep_dist.workflow.context import label_loss
        from genrep_dist.workflow.returned import checked_tensor

        own, _ = own_outputs(context.train.targets.cpu(), label_loss(context.loss))
        kernel = context.kernel(unit.kernel)
        if isinstance(kernel, DerivedKernel):
            inputs = Inputs(context, unit.seed, unit.epoch, unit.block, context.test_points(unit.seed))
            shape = len(own), context.num_outputs(unit.seed)
            diagonal = checked_tensor(kernel.diagonal(inputs, own), shape, kernel, "diagonal", f"kernel {unit.kernel}, seed {unit.seed}")
        else:
            diagonal = torch.cat(list(_blocks(unit, context, own)))
        write_diagonal(context, unit.seed, unit.kernel, unit.epoch, diagonal)
        return {"rows": float(len(diagonal))}

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        del kind
        return {"diagonal": ("train", 0)}

    def plan(self, plan: Plan) -> StagePlan | None:
        diagonals, seeds = plan.needs.diagonals, len(plan.experiment.seeds)
        if not diagonals:
            return None
        peak = max(block_bytes(plan, kernel) if kernel in plan.block_rows else peak_bytes(plan, kernel) for kernel, _ in diagonals)
        written = len(diagonals) * 8 * plan.shape.num_train * plan.shape.num_outputs
        return StagePlan(self.name, f"self-influence on {len(diagonals)} kernels", seeds * len(diagonals), seeds * written, peak)

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return sum(features_seconds(plan, kernel, rates) for kernel, _ in plan.needs.diagonals if kernel in plan.shape.kernels)


def _blocks(unit: DiagonalUnit, context: WorkerContext, own: Tensor) -> Iterator[Tensor]:
    from genrep_dist.core.self_influence import scalar_diagonal
    from genrep_dist.workflow.features import pairwise_block, train_features
    from genrep_dist.workflow.returned import checked_tensor

    num_train, num_outputs, kernel = len(own), context.num_outputs(unit.seed), context.kernel(unit.kernel)
    rows = unit.block if isinstance(kernel, FeatureKernel) else min(unit.block, PAIRWISE_ROWS)
    for start in range(0, num_train, rows):
        at = slice(start, min(start + rows, num_train))
        if isinstance(kernel, FeatureKernel):
            features = train_features(context, unit.kernel, unit.seed, unit.epoch, at.start, at.stop)
            diagonal = kernel.diagonal(features, own[at].to(context.device), num_outputs)
            where = f"kernel {unit.kernel}, seed {unit.seed}, epoch {unit.epoch}"
            yield checked_tensor(diagonal, (at.stop - at.start, num_outputs), kernel, "diagonal", where).cpu()
        else:
            inputs = context.train.inputs[at]
            block = pairwise_block(context, unit.kernel, unit.seed, unit.epoch, inputs, inputs)
            yield scalar_diagonal(block.diagonal().cpu(), own[at], num_outputs)


def self_influence_of(method: Method, seed: int, context: WorkerContext) -> Tensor:
    """Phi(x_i -> x_i) (N,) float64 of a method: how much each training sample raises the logit of its own given label."""
    import torch

    from genrep_dist.core.attribution import random_scores
    from genrep_dist.core.self_influence import own_outputs, self_influence
    from genrep_dist.workflow.context import label_loss

    own, direction = own_outputs(context.train.targets.cpu(), label_loss(context.loss))
    if method.is_random:
        return random_scores([derive_seed(seed, "random", "self")], len(own))[:, 0]
    if method.scorer_class is not None:
        from genrep_dist.workflow.scores import self_scores_of

        return self_scores_of(method, seed, context)
    total = torch.zeros(len(own), dtype=torch.float64)
    for term in context.keys.terms(method):
        key = context.keys.diagonal(seed, method.kernel, term.kernel_epoch)
        diagonal = torch.from_numpy(context.store.artifact("diagonal", key).read("diagonal"))
        importance = alpha(context, method.importance, seed, method.kernel, term.importance_epoch)
        rate = context.term_rate(seed, term)
        total += rate * self_influence(importance, diagonal, direction)
    return total
