"""Scores of ensembles: the mean of those of several models, for the test points of the explained network.

Over seeds: the explained network and others, which were trained on the same data from other initial parameters and in another order. Over
dropout: subnetworks of the explained one. They explain what its points are explained for: the class that the explained network predicts. Of
other networks only what training keeps is stored, of subnetworks nothing. Means over checkpoints are terms of a method, as
:meth:`~genrep_dist.config.keys.Keys.terms` says, and not computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.core.methods import Method
from genrep_dist.plan import FLOAT_BYTES, Plan, derived_kernel, direct_terms, gram_base, is_streamed
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.derived import derived_work_seconds, peak_bytes, whole_kernel_bytes
from genrep_dist.workflow.gradients import features_seconds

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.config import Experiment
    from genrep_dist.config.keys import Term
    from genrep_dist.problems.protocol import Problem
    from genrep_dist.workflow.context import TestPoints, WorkerContext


@dataclass(frozen=True)
class MemberWork:
    """How the scores of another network are computed: ``block`` training rows of a kernel, or of a derived one's base, at once;
    ``dense_rows`` and ``product_rows`` of derived kernels (:class:`~genrep_dist.workflow.derived.DerivedUnit`); ``direct``: without K.
    """

    block: int
    dense_rows: int
    product_rows: int
    direct: bool


def member_work(plan: Plan, method: Method) -> MemberWork | None:
    """That of an ensemble's method; None for a method of one network."""
    if not method.has_other_models:
        return None
    block = plan.block_rows.get(_computed(plan, method), plan.dense_rows)
    return MemberWork(block, plan.dense_rows, plan.product_rows, bool(direct_terms(plan.keys, plan.shape, method)))


def ensemble_mean(
    method: Method, own: Callable[[], Tensor], seed: int, context: WorkerContext, points: TestPoints, work: MemberWork
) -> Tensor:
    """The mean (N, M) float64 of the scores of all models for ``points``; ``own()`` computes those of the network of ``seed``."""
    found = (member_scores(method, other, one, points, work) for other, one, points in other_models(method, seed, context, points))
    total = next(found) if method.averages_masks else own()
    for scores in found:
        total = total + scores
    return total / method.networks


def other_models(method: Method, seed: int, context: WorkerContext, points: TestPoints) -> Iterator[tuple[int, WorkerContext, TestPoints]]:
    """The seed of each other model of an ensemble, with what it is computed from; a target's derivatives are each model's own."""
    if method.averages_masks:
        return ((seed, context.with_dropout_mask(mask), replace(points, derivatives={})) for mask in range(method.networks))
    return ((other, context, points) for other in context.keys.ensemble_seeds(seed, method))


def check_ensembles(experiment: Experiment, problem: Problem, inputs: Tensor) -> None:
    """Raise ProblemError for an ensemble over dropout of a model that has none, tried on a few ``inputs`` (B, ...)."""
    if not any(method.averages_masks for method in experiment.parsed_methods):
        return
    from genrep_dist.core.dropout_masks import mask_dropout, no_dropout
    from genrep_dist.problems.checks import build_model, has_module

    if not has_module(problem):
        raise no_dropout()
    mask_dropout(build_model(problem).eval(), 0, inputs[:2])


def member_scores(method: Method, other: int, context: WorkerContext, points: TestPoints, work: MemberWork) -> Tensor:
    """Phi (N, M) float64 of the network of the seed ``other``, or of its subnetwork in ``context``, from its checkpoints and outputs."""
    import torch

    from genrep_dist.workflow.attributions import attribution, kernel_products
    from genrep_dist.workflow.derived import Inputs, derived_columns
    from genrep_dist.workflow.features import features_reader
    from genrep_dist.workflow.gram_tiles import feature_products, gram_tile
    from genrep_dist.workflow.kernels import kernel_block
    from genrep_dist.workflow.terms import term_block

    one, count = replace(method, networks=1), len(context.train.ids)
    blocks = [(at, min(at + work.block, count)) for at in range(0, count, work.block)]

    def cross(kernel: str, epoch: int) -> Iterator[Tensor]:
        found = (kernel_block(context, kernel, other, epoch, *block, points, stored=False) for block in blocks)
        return (block.float().cpu() for block in found)

    def gram(kernel: str, epoch: int) -> Tensor:
        rows = features_reader(context, kernel, other, epoch, stored=False)
        return torch.from_numpy(gram_tile(feature_products(rows, work.block), (0, count), (0, count), work.block))

    def kernel_at(epoch: int) -> Iterable[Tensor]:
        kernel = context.kernel(one.kernel)
        if not isinstance(kernel, DerivedKernel):
            return cross(one.kernel, epoch)
        inputs = Inputs(
            context,
            other,
            epoch,
            work.dense_rows,
            points,
            lambda base: torch.cat(list(cross(base, epoch))),
            work.product_rows,
            lambda base: gram(base, epoch),
        )
        # As it is stored for the explained network: float32.
        return [derived_columns(kernel, inputs)[0].float().cpu()]

    def term_at(term: Term) -> Tensor:
        at = one.kernel, term.kernel_epoch, one.importance, term.importance_epoch
        return torch.cat([term_block(context, at, other, *block, points) for block in blocks])

    products = term_at if work.direct else kernel_products(one, other, context, kernel_at)
    return attribution(one, other, context, points, products)


def ensemble_bytes(plan: Plan) -> int:
    """Memory of the scores of another model: a block of its kernel, and a derived kernel with the gram that it may be made of."""
    needed = 0
    for method in _ensembles(plan):
        computed = _computed(plan, method)
        block = block_bytes(plan, computed) if computed in plan.block_rows else 0
        if computed != method.kernel:
            base = gram_base(_derived(plan, method))
            block += (
                peak_bytes(plan, method.kernel)
                + whole_kernel_bytes(plan, method.kernel)
                + (0 if base is None else FLOAT_BYTES * plan.shape.gram_rows(base) ** 2)
            )
        needed = max(needed, block + (plan.prediction_bytes if method.averages_masks else 0))
    return needed


def ensemble_seconds(plan: Plan, rates: Rates) -> float:
    """Seconds of one worker for the scores of all other networks."""
    total = 0.0
    for method in _ensembles(plan):
        scorer, computed = method.scorer_class, _computed(plan, method)
        passed = scorer.base if scorer is not None else computed
        each = features_seconds(plan, passed, rates) * max(1, len(plan.keys.method_epochs(method))) if passed in plan.shape.kernels else 0.0
        if method.has_kernel and computed != method.kernel:
            work = derived_work_seconds(plan, method.kernel, rates) * len(plan.experiment.seeds)
            each = work + (each if gram_base(_derived(plan, method)) is not None else 0.0)
        total += (method.networks if method.averages_masks else method.networks - 1) * each
    return total


def _computed(plan: Plan, method: Method) -> str:
    """The kernel whose features or pairs are computed: the base of a derived one, which may have none, or the method's own."""
    derived = derived_kernel(plan.keys, method.kernel, plan.shape) if method.has_kernel else None
    return method.kernel if derived is None else derived.base or ""


def _derived(plan: Plan, method: Method) -> DerivedKernel:
    found = derived_kernel(plan.keys, method.kernel, plan.shape)
    assert found is not None
    return found


def _ensembles(plan: Plan) -> Iterator[Method]:
    """Those whose scores the stage attributions computes: of others the strongest are taken from spans."""
    return (m for m in plan.experiment.parsed_methods if m.has_other_models and not is_streamed(plan.keys, m))
