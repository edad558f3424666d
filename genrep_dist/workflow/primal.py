"""Solves by the primal system: products with a kernel's gram from the features of the training rows, held, read or computed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genrep_dist.plan import FLOAT_BYTES, Plan
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.blocks import worker_bytes
from genrep_dist.workflow.gradients import DISK_BYTES_PER_SECOND, features_seconds, is_held, stored_row_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.solvers.feature_gram import FeatureGram
    from genrep_dist.workflow.context import WorkerContext

PASSES_A_PRODUCT = 2
"""Over all features: Phi^T alpha, and Phi times that."""


@dataclass(frozen=True)
class PrimalFeatures:
    """How a unit gets features: ``gram_rows`` of ``width`` numbers for a sample, ``held`` in memory, ``stored`` or else computed."""

    gram_rows: int
    width: int
    held: bool
    stored: bool


def primal_features(plan: Plan, kernel: str, epoch: int) -> PrimalFeatures:
    sizes = plan.shape.kernels[kernel]
    return PrimalFeatures(sizes.gram_rows, sizes.row_width, is_held(plan, kernel), (kernel, epoch) in plan.stored_features)


def feature_gram(features: PrimalFeatures, context: WorkerContext, kernel: str, seed: int, epoch: int) -> FeatureGram:
    """Products with K of the training rows of one model."""
    from genrep_dist.core.gradients.factored import FactoredGradients
    from genrep_dist.core.solvers.feature_gram import FeatureGram, samples_of_block
    from genrep_dist.workflow.features import dense_features, features_reader

    num_train = len(context.train.ids)
    step = samples_of_block(num_train, features.gram_rows, features.width)

    def rows(start: int, stop: int) -> Tensor:
        if not features.stored:
            return dense_features(context, kernel, seed, epoch, start, stop)
        found = read(start, stop)
        return (found.to_dense() if isinstance(found, FactoredGradients) else found).cpu()

    def blocks() -> Iterator[Tensor]:
        spans = ((at, min(at + step, num_train)) for at in range(0, num_train, step))
        return (rows(*span).reshape(-1, features.width) for span in spans)

    read = features_reader(context, kernel, seed, epoch, stored=features.stored)
    return FeatureGram(blocks, num_train, features.gram_rows, hold=features.held)


def features_bytes(plan: Plan, kernel: str) -> int:
    """Memory of the features in a solve: those that are held, a block at work, the rows of a preconditioner, and computing or reading."""
    from genrep_dist.core.solvers.feature_gram import BLOCK_BYTES, samples_of_block
    from genrep_dist.core.solvers.nystrom import num_nystrom_columns

    sizes = plan.shape.kernels[kernel]
    numbers = samples_of_block(plan.shape.num_train, sizes.gram_rows, sizes.row_width) * sizes.gram_rows * sizes.row_width
    held = FLOAT_BYTES * plan.shape.gram_rows(kernel) * sizes.row_width if is_held(plan, kernel) else 0
    chosen = 8 * num_nystrom_columns(plan.shape.num_train * plan.shape.num_outputs) * sizes.row_width
    return held + BLOCK_BYTES * numbers + chosen + worker_bytes(plan, kernel)


def pass_seconds(plan: Plan, kernel: str, epoch: int, products: int, rates: Rates) -> float:
    """Seconds of one worker to get the features of a solve with so many products, for all seeds."""
    stored, passes = (kernel, epoch) in plan.stored_features, 1 if is_held(plan, kernel) else PASSES_A_PRODUCT * products
    read = len(plan.experiment.seeds) * plan.shape.num_train * stored_row_bytes(plan, kernel) / DISK_BYTES_PER_SECOND
    return passes * (read if stored else features_seconds(plan, kernel, rates))
