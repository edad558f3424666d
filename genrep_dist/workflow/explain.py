"""Attributions for points that a run did not explain: from its models and solved importances, without training anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from genrep_dist.config.keys import Term
from genrep_dist.core.attribution import attribute, weighted_sum
from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.core.methods import Method
from genrep_dist.core.strongest import StrongestScores
from genrep_dist.errors import MethodError
from genrep_dist.plan import Plan, derived_kernel, direct_terms
from genrep_dist.training.threads import one_thread
from genrep_dist.workflow.attributions import POINT_COPIES, attribution, kernel_products
from genrep_dist.workflow.blocks import cross_bytes, point_bytes
from genrep_dist.workflow.context import TestPoints, WorkerContext
from genrep_dist.workflow.derived import Inputs, derived_columns
from genrep_dist.workflow.ensembles import ensemble_mean, member_work
from genrep_dist.workflow.features import features_reader
from genrep_dist.workflow.importances import alpha
from genrep_dist.workflow.kernels import kernel_block
from genrep_dist.workflow.prefetch import Prefetcher
from genrep_dist.workflow.returned import Rows
from genrep_dist.workflow.strongest import row_spans
from genrep_dist.workflow.terms import term_block


def other_points(context: WorkerContext, seed: int, inputs: Tensor, ids: Tensor, targets: Tensor | None = None) -> TestPoints:
    """``inputs`` (M, ...) with ``ids`` (M,) as test points. The original model's outputs, or ``targets``, choose what is explained.

    Each point is explained by itself, also where the run explains means of groups.
    """
    inputs = inputs.to(context.device)
    predictions = context.predict(context.model(seed, context.keys.epochs), inputs)
    return context.make_points(inputs, ids, predictions.cpu().numpy(), targets)


def explain(plan: Plan, context: WorkerContext, method: Method, seed: int, points: TestPoints) -> Tensor:
    """Phi (N, M) float64 of ``points``, by the formula and blocks of the run itself.

    Kernels with the new points are computed in blocks of rows, from stored features where there are any; of what the run has solved
    for (surrogate, descent, the gram of a derived kernel) the stored one serves. NotCommittedError where it is missing, MethodError for a
    kernel of which the run has nothing. As many points at once as the memory budget allows, and at least as many as the run explained.
    """
    work = member_work(plan, method)
    if work is not None:
        one = replace(method, networks=1)
        return ensemble_mean(method, lambda: explain(plan, context, one, seed, points), seed, context, points, work)
    at_once = _points_at_once(plan, method)
    if len(points) > at_once:
        parts = (slice(at, at + at_once) for at in range(0, len(points), at_once))
        return torch.cat([explain(plan, context, method, seed, points.part(part)) for part in parts], dim=1)

    def kernel_at(epoch: int) -> Iterable[Tensor]:
        kernel = context.kernel(method.kernel)
        if not isinstance(kernel, DerivedKernel):
            return _kernel_blocks(plan, context, method.kernel, seed, epoch, points)
        cross = None if kernel.base is None else lambda base: torch.cat(list(_kernel_blocks(plan, context, base, seed, epoch, points)))
        block, _ = derived_columns(kernel, Inputs(context, seed, epoch, plan.dense_rows, points, cross, plan.product_rows))
        # As it is stored: float32.
        return [block.float().cpu()]

    def term_at(term: Term) -> Tensor:
        found = method.kernel, term.kernel_epoch, method.importance, term.importance_epoch
        return torch.cat([term_block(context, found, seed, *block, points) for block in plan.blocks(method.kernel)])

    with one_thread():
        direct = direct_terms(plan.keys, plan.shape, method)
        products = term_at if direct else kernel_products(method, seed, context, kernel_at)
        return attribution(method, seed, context, points, products)


def explain_strongest(plan: Plan, context: WorkerContext, method: Method, seed: int, points: TestPoints, count: int) -> StrongestScores:
    """The ``count`` strongest scores of each sign of ``points``, by the formula, blocks and errors of :func:`explain`.

    Of a feature or pairwise kernel all points share one pass over the training rows for each checkpoint, from stored features where there
    are any, and no more scores are held than those of some blocks: as many points at once as the memory budget allows. Of other methods
    the scores of all samples are computed for some points at a time.
    """
    if is_blockwise(plan, method):
        at_once = _points_at_once(plan, method)
        if len(points) > at_once:
            parts = (points.part(slice(at, at + at_once)) for at in range(0, len(points), at_once))
            return StrongestScores.of_points([explain_strongest(plan, context, method, seed, part, count) for part in parts])
        found = StrongestScores(len(points), count)
        with one_thread():
            for start, phi in _phi_spans(plan, context, method, seed, points, count):
                found.add(phi, context.train.ids[start : start + len(phi)])
        return found
    at_once = max(1, plan.budget_bytes // 4 // (POINT_COPIES * 8 * plan.shape.num_train))
    pieces = []
    for at in range(0, len(points), at_once):
        phi = explain(plan, context, method, seed, points.part(slice(at, at + at_once)))
        pieces.append(StrongestScores(phi.shape[1], count))
        pieces[-1].add(phi.cpu().double(), context.train.ids)
    return StrongestScores.of_points(pieces)


def is_blockwise(plan: Plan, method: Method) -> bool:
    """Whether a method's scores are products with blocks of a feature or pairwise kernel of one network."""
    return not method.has_other_models and method.has_kernel and derived_kernel(plan.keys, method.kernel) is None


def _phi_spans(
    plan: Plan, context: WorkerContext, method: Method, seed: int, points: TestPoints, count: int
) -> Iterator[tuple[int, Tensor]]:
    """Phi (rows, M) float64 by spans of blocks, with the first row of each. One block is read while the one before it is multiplied."""
    _require_kernel(plan, method.kernel)
    spans, blocks = row_spans(plan, method.kernel, count, len(points)), plan.blocks(method.kernel)
    terms, direct = context.keys.terms(method), bool(direct_terms(plan.keys, plan.shape, method))
    alphas = [alpha(context, method.importance, seed, method.kernel, term.importance_epoch) for term in terms]
    rates = [context.term_rate(seed, term) for term in terms]
    readers = [None if direct else _reader(plan, context, method.kernel, seed, term.kernel_epoch) for term in terms]
    with ExitStack() as stack:
        # Blocks of several checkpoints take turns, and are not read ahead.
        ahead = blocks if len(terms) == 1 else ()
        reads = [None if one is None else stack.enter_context(Prefetcher(one, ahead)) for one in readers]
        for start, stop in spans:
            inside = [block for block in blocks if start <= block[0] < stop]
            products = []
            for term, weights, read in zip(terms, alphas, reads, strict=True):
                parts = []
                for first, last in inside:
                    if direct:
                        found = method.kernel, term.kernel_epoch, method.importance, term.importance_epoch
                        parts.append(term_block(context, found, seed, first, last, points))
                        continue
                    place = method.kernel, seed, term.kernel_epoch, first, last
                    block = kernel_block(context, *place, points, stored=read is not None, read=read)
                    parts.append(attribute(weights[first:last], block.float().cpu().double()))
                products.append(torch.cat(parts))
            yield start, weighted_sum(zip(rates, products, strict=True))


def _reader(plan: Plan, context: WorkerContext, kernel: str, seed: int, epoch: int) -> Callable[[int, int], Rows] | None:
    """Reads stored features of training rows; None where there are none."""
    features = context.store.artifact("features", context.keys.features(seed, kernel, epoch))
    if (kernel, epoch) not in plan.stored_features or not features.is_committed():
        return None
    return features_reader(context, kernel, seed, epoch, stored=True)


def computed_kernel(plan: Plan, context: WorkerContext, kernel: str, seed: int, epoch: int) -> Tensor:
    """K (N, C, M) float32 of a feature or pairwise kernel with the seed's test points, in the blocks of the run, on the CPU."""
    with one_thread():
        return torch.cat(list(_kernel_blocks(plan, context, kernel, seed, epoch, context.test_points(seed))))


def _kernel_blocks(plan: Plan, context: WorkerContext, kernel: str, seed: int, epoch: int, points: TestPoints) -> Iterator[Tensor]:
    """K (rows, C, M) float32 with ``points`` by blocks of training rows: of stored features where there are any, else computed."""
    _require_kernel(plan, kernel)
    features = context.store.artifact("features", context.keys.features(seed, kernel, epoch))
    stored = (kernel, epoch) in plan.stored_features and features.is_committed()
    blocks = (kernel_block(context, kernel, seed, epoch, *block, points, stored=stored) for block in plan.blocks(kernel))
    return (block.float().cpu() for block in blocks)


def _require_kernel(plan: Plan, kernel: str) -> None:
    if kernel not in plan.block_rows:
        raise MethodError(
            "this run has nothing of that kernel",
            where=f"kernel {kernel}",
            expected=", ".join(plan.block_rows) or "a run with kernels",
            got=kernel,
        )


def _points_at_once(plan: Plan, method: Method) -> int:
    """Test points whose features, and whose K with a block of training rows, each fit a quarter of the memory budget."""
    derived = derived_kernel(plan.keys, method.kernel) if method.has_kernel else None
    scorer = method.scorer_class
    base = scorer.base if scorer is not None else method.kernel if derived is None else derived.base
    room, most = plan.budget_bytes // 4, plan.experiment.num_test_points
    if base not in plan.block_rows:
        return max(most, room // (6 * 8 * max(1, plan.shape.num_parameters)))
    return max(most, min(room // point_bytes(plan.shape.kernels[base]), room // cross_bytes(plan.shape.num_outputs, plan.block_rows[base])))
