"""Products of importances and a kernel without K(train, test): one vector-Jacobian product a training sample, whatever the outputs.

Phi = sum_c alpha_c K_c is linear in the outputs' gradients, so the gradient of sum_c alpha_c f_c serves where alpha is known before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from genrep_dist.errors import NonFiniteError
from genrep_dist.plan import FLOAT_BYTES, Plan, TermAt
from genrep_dist.units import RowsUnit
from genrep_dist.workflow.base import ArraySpec
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.importances import alpha

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.workflow.context import TestPoints, WorkerContext

NUMBER_BYTES = 2 * FLOAT_BYTES


@dataclass(frozen=True)
class TermUnit(RowsUnit):
    """Sum_c alpha_c K_c(train rows ``start`` to ``stop``, the seed's test points)."""

    importance: str
    importance_epoch: int
    stage = "kernels"

    @property
    def term(self) -> TermAt:
        return self.kernel, self.epoch, self.importance, self.importance_epoch

    @property
    def label(self) -> str:
        return f"term seed={self.seed} {self.kernel} epoch={self.epoch} {self.importance} rows {self.start}-{self.stop}"


def term_units(plan: Plan, seed: int, term: TermAt) -> tuple[TermUnit, ...]:
    kernel, epoch, importance, importance_epoch = term
    return tuple(TermUnit(seed, kernel, epoch, *block, importance, importance_epoch) for block in plan.blocks(kernel))


def term_array(plan: Plan, kernel: str) -> ArraySpec:
    points = plan.experiment.num_test_points
    return ArraySpec("phi", (plan.shape.num_train, points), (plan.block_rows[kernel], points), ("train", "test"), "float64")


def term_bytes(plan: Plan, kernel: str) -> int:
    """Memory of a unit: at most that of a block of K with the features of all outputs, and all importances twice."""
    return block_bytes(plan, kernel) + 2 * NUMBER_BYTES * plan.shape.num_train * plan.shape.num_outputs


def term_block(context: WorkerContext, term: TermAt, seed: int, start: int, stop: int, points: TestPoints) -> Tensor:
    """Sum_c alpha_c K_c (rows, M) float64 of the training rows ``start`` to ``stop`` with test points.

    NonFiniteError names samples whose importances or features are NaN or Inf.
    """
    kernel, epoch, importance, importance_epoch = term
    alphas = alpha(context, importance, seed, kernel, importance_epoch)[start:stop]
    where = f"kernel {kernel}, importance {importance}, seed {seed}, epoch {epoch}"
    return product_block(context, kernel, seed, epoch, alphas, start, points, where)


def product_block(
    context: WorkerContext, kernel: str, seed: int, epoch: int, alphas: Tensor, start: int, points: TestPoints, where: str
) -> Tensor:
    """Sum_c alpha_c K_c (rows, M) float64 of ``alphas`` (rows, C) float64 of the training rows from ``start`` on, with test points.

    NonFiniteError, with ``where``, names samples whose importances or features are NaN or Inf.
    """
    import torch

    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.workflow.features import feature_kernel, pass_rows, point_block, point_features, train_features

    computed, stop = feature_kernel(context, kernel), start + len(alphas)
    _refuse_non_finite(alphas, context.train.ids[start:stop], where)
    # Weights of at most 1: in the dtype of the gradients a small alpha would lose digits, or vanish.
    sizes = alphas.abs().amax(dim=1, keepdim=True)
    weights = (alphas / torch.where(sizes > 0, sizes, 1.0)).to(context.device)
    prepared = point_features(context, kernel, seed, epoch, points)
    first_output = torch.zeros(len(points), dtype=torch.int64, device=context.device)
    step, blocks = pass_rows(context, computed, context.model(seed, epoch)), []
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = train_features(context, kernel, seed, epoch, first, last, weights[first - start : last - start])
        one_output = rows if isinstance(rows, FactoredGradients) else rows.unsqueeze(1)
        blocks.append(point_block(computed, one_output, prepared, first_output, 1, where).squeeze(1))
    return sizes * torch.cat(blocks).double().cpu()


def run_term(unit: TermUnit, context: WorkerContext) -> dict[str, float]:
    """Compute and write one block of a term."""
    from genrep_dist.workflow.context import to_numpy

    phi = term_block(context, unit.term, unit.seed, unit.start, unit.stop, context.test_points(unit.seed))
    artifact = context.store.artifact("term", context.keys.term(unit.seed, *unit.term))
    artifact.write_part(unit.part, "phi", (unit.start, 0), to_numpy(phi), seconds=context.elapsed())
    return {"rows": float(unit.stop - unit.start)}


def _refuse_non_finite(alphas: Tensor, ids: Tensor, where: str) -> None:
    import torch

    bad = ids[~torch.isfinite(alphas).all(dim=1)].tolist()
    if bad:
        raise NonFiniteError(
            "importances hold NaN or Inf",
            where=f"{where}; sample ids {bad[:5]}",
            expected="finite numbers",
            got=f"{len(bad)} training samples",
            remedy="look at these samples and at the scale of the model's outputs",
        )
