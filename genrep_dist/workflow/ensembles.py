"""Scores of ensembles: the mean of those of the explained network and of others, for the test points of the explained one.

The others were trained on the same data from other initial parameters and in another order. They explain what the explained network's
points are explained for: the class that it predicts. Of them only the trained networks are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.core.methods import Method
from genrep_dist.errors import PlanError
from genrep_dist.plan import Plan, derived_kernel, direct_terms, gram_base
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.derived import derived_work_seconds, peak_bytes
from genrep_dist.workflow.gradients import features_seconds

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.config.keys import Term
    from genrep_dist.workflow.context import TestPoints, WorkerContext


@dataclass(frozen=True)
class MemberWork:
    """How the scores of another network are computed: ``block`` training rows of a kernel at once, ``dense_rows`` and ``product_rows`` of
    derived kernels (:class:`~genrep_dist.workflow.derived.DerivedUnit`); ``direct``: without K.
    """

    block: int
    dense_rows: int
    product_rows: int
    direct: bool


def member_work(plan: Plan, method: Method) -> MemberWork | None:
    """That of an ensemble's method; None for a method of one network."""
    if method.networks == 1:
        return None
    block = plan.block_rows.get(method.kernel, plan.dense_rows)
    return MemberWork(block, plan.dense_rows, plan.product_rows, bool(direct_terms(plan.keys, plan.shape, method)))


def refuse_grams(plan: Plan) -> None:
    """Raise PlanError for an ensemble of a kernel that is made of a gram: the other networks have none."""
    for method in plan.experiment.parsed_methods:
        derived = derived_kernel(plan.keys, method.kernel, plan.shape) if method.networks > 1 and method.has_kernel else None
        if derived is not None and gram_base(derived) is not None:
            raise PlanError(
                "an ensemble of a kernel that is made of a gram, which is computed of the explained network alone",
                where=f"ensembles.{method.name}.method: {plan.experiment.ensembles[method.name].method}",
                expected="a kernel that is made of features",
                got=derived.summary(),
                remedy="set influence.system: primal, with a projection where the network has many parameters; or choose ekfac or datainf",
            )


def ensemble_mean(method: Method, own: Tensor, seed: int, context: WorkerContext, points: TestPoints, work: MemberWork) -> Tensor:
    """The mean (N, M) float64 of the ``own`` scores of the network of ``seed`` and of those of the others for the same ``points``."""
    total = own
    for other in context.keys.ensemble_seeds(seed, method):
        total = total + member_scores(method, other, context, points, work)
    return total / method.networks


def member_scores(method: Method, other: int, context: WorkerContext, points: TestPoints, work: MemberWork) -> Tensor:
    """Phi (N, M) float64 of the network of the seed ``other``, from its checkpoints and outputs."""
    import torch

    from genrep_dist.workflow.attributions import attribution, kernel_products
    from genrep_dist.workflow.derived import Inputs, derived_columns
    from genrep_dist.workflow.kernels import kernel_block
    from genrep_dist.workflow.terms import term_block

    one, count = replace(method, networks=1), len(context.train.ids)
    blocks = [(at, min(at + work.block, count)) for at in range(0, count, work.block)]

    def kernel_at(epoch: int) -> Iterable[Tensor]:
        kernel = context.kernel(one.kernel)
        if isinstance(kernel, DerivedKernel):
            inputs = Inputs(context, other, epoch, work.dense_rows, points, product_rows=work.product_rows)
            # As it is stored for the explained network: float32.
            return [derived_columns(kernel, inputs)[0].float().cpu()]
        found = (kernel_block(context, one.kernel, other, epoch, *block, points, stored=False) for block in blocks)
        return (block.float().cpu() for block in found)

    def term_at(term: Term) -> Tensor:
        at = one.kernel, term.kernel_epoch, one.importance, term.importance_epoch
        return torch.cat([term_block(context, at, other, *block, points) for block in blocks])

    products = term_at if work.direct else kernel_products(one, other, context, kernel_at)
    return attribution(one, other, context, points, products)


def ensemble_bytes(plan: Plan) -> int:
    """Memory of the scores of another network beside those of the explained one."""
    needed = 0
    for method in _ensembles(plan):
        if method.kernel in plan.block_rows:
            needed = max(needed, block_bytes(plan, method.kernel))
        elif method.has_kernel and derived_kernel(plan.keys, method.kernel) is not None:
            needed = max(needed, peak_bytes(plan, method.kernel))
    return needed


def ensemble_seconds(plan: Plan, rates: Rates) -> float:
    """Seconds of one worker for the scores of all other networks."""
    total = 0.0
    for method in _ensembles(plan):
        scorer = method.scorer_class
        base = scorer.base if scorer is not None else method.kernel
        passes = max(1, len(plan.keys.method_epochs(method)))
        if base in plan.shape.kernels:
            total += (method.networks - 1) * passes * features_seconds(plan, base, rates)
        elif method.has_kernel:
            total += (method.networks - 1) * derived_work_seconds(plan, method.kernel, rates) * len(plan.experiment.seeds)
    return total


def _ensembles(plan: Plan) -> Iterator[Method]:
    return (method for method in plan.experiment.parsed_methods if method.networks > 1)
