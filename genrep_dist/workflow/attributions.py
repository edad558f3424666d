"""Stage attributions: phi of every method for the seed's test points, and the order in which it would remove samples.

Where only the strongest scores are kept, those of all other samples are neither held nor written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from genrep_dist.config.keys import Term
from genrep_dist.core.methods import Method
from genrep_dist.plan import Plan, StagePlan, direct_terms, is_streamed
from genrep_dist.seeds import derive_seed
from genrep_dist.store.artifacts import Artifact
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, SampleAxis, Stage
from genrep_dist.workflow.blocks import cached_bytes
from genrep_dist.workflow.ensembles import MemberWork, ensemble_bytes, ensemble_mean, ensemble_seconds, member_work
from genrep_dist.workflow.importances import alpha
from genrep_dist.workflow.scorer_costs import scorer_bytes, scorer_seconds
from genrep_dist.workflow.strongest import merged_spans, packed_width, read_spans, streamed_methods

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.attribution import Sign
    from genrep_dist.core.strongest import StrongestScores
    from genrep_dist.workflow.context import TestPoints, WorkerContext

    KernelBlocks = Callable[[int], Iterable[Tensor]]
    """epoch -> blocks of consecutive training rows of K (N, C, M)."""
    Products = Callable[[Term], Tensor]
    """A term of a method's scores -> sum_c alpha_c K_c (N, M) float64."""

SIGNS: tuple[Sign, ...] = ("negative", "positive")
ARRAYS_HELD = 3
"""Arrays (N, M) of 8 bytes a number that one method's attributions are: scores and two orders."""
POINT_COPIES = 8
"""Times 8 bytes: the scores of all samples for one test point, with ids, as they are and sorted."""
KERNEL_ROW_COPIES = 5
"""Times 4 bytes: a kernel's row as it is stored, in float64, and as it is multiplied."""


@dataclass(frozen=True)
class AttributionUnit(Unit):
    """phi(train, test points) of one method, and what it would remove. ``direct``: from stored products, else from importances and K.

    ``members``: how the scores of the other networks of an ensemble are computed.
    ``top``: how many of the strongest scores of each sign are kept; 0: all scores. ``merged``: the methods with which their strongest
    scores were taken from spans of rows, which are merged; empty for a method whose scores are computed here. ``points``: test points whose
    scores are held at once.
    """

    method: str
    direct: bool
    members: MemberWork | None = None
    top: int = 0
    merged: tuple[str, ...] = ()
    points: int = 0
    stage: ClassVar[str] = "attributions"

    @property
    def label(self) -> str:
        return f"attribution seed={self.seed} {self.method}"


class AttributionsStage(Stage[AttributionUnit]):
    name = "attributions"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        # Scores of other tools are there before any work begins.
        methods = [method for method in plan.experiment.parsed_methods if not method.is_external]
        for seed in plan.experiment.seeds:
            for method in methods:
                unit = attribution_unit(plan, seed, method)
                yield ArtifactSpec("attribution", plan.keys.attribution(seed, method), seed, (unit,))

    def run(self, unit: AttributionUnit, context: WorkerContext) -> dict[str, float]:
        """Write phi (N, M) float64 and the full removal orders (M, N) of sample ids, most negative and most positive first.

        Or the strongest scores of each sign alone: ids (M, K) in the same order, and their scores.
        """
        method, points = context.experiment.method(unit.method), context.test_points(unit.seed)
        manifest: dict[str, Any] = {"test_ids": context.test.ids[context.keys.explained_rows(unit.seed)].tolist()}
        artifact = context.store.artifact("attribution", context.keys.attribution(unit.seed, method))
        if unit.top:
            found = strongest_scores(unit, method, context)
            if method.needs_gram:
                manifest["efficiency_gap_test"] = _efficiency_gap(found.total, unit.seed, points, context, method)
            write_strongest(artifact, method, unit.seed, found, {**manifest, "seconds": context.elapsed()})
            return {"scores": float(len(context.train.ids) * len(found.total))}
        phi = stored_attribution(method, unit.seed, context, direct=unit.direct, members=unit.members)
        if method.needs_gram:
            manifest["efficiency_gap_test"] = _efficiency_gap(phi.sum(dim=0), unit.seed, points, context, method)
        write_attribution(artifact, method, unit.seed, phi, context.train.ids, {**manifest, "seconds": context.elapsed()})
        return {"scores": float(phi.numel())}

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        del kind
        return {"phi": ("train", 0)}

    def plan(self, plan: Plan) -> StagePlan | None:
        methods, points, external = len(plan.experiment.methods), plan.experiment.num_test_points, len(plan.experiment.external_methods)
        if plan.top is not None:
            return self._plan_strongest(plan, plan.top)
        each = ARRAYS_HELD * 8 * plan.shape.num_train * points
        what = f"{methods} methods x {points} test points" + (f", {external} of them external scores" if external else "")
        seeds = len(plan.experiment.seeds)
        shape = plan.shape
        rows = min(shape.num_train, kernel_rows(plan.budget_bytes, shape.num_outputs, points))
        held = shape.num_outputs * (2 * 8 * shape.num_train + rows * 4 * KERNEL_ROW_COPIES * points)
        peak = max(2 * each + held + cached_bytes(plan), each + scorer_bytes(plan), each + ensemble_bytes(plan))
        return StagePlan(self.name, what, seeds * (methods - external), seeds * methods * each, peak)

    def _plan_strongest(self, plan: Plan, top: int) -> StagePlan:
        shape, experiment, seeds = plan.shape, plan.experiment, len(plan.experiment.seeds)
        methods, external, points = len(experiment.methods), len(experiment.external_methods), experiment.num_test_points
        merged = {method.name for one in streamed_methods(plan).values() for method in one}
        kept = 8 * 4 * top * experiment.num_explained
        what = f"{methods} methods x {points} test points, the {top:,} strongest scores of each sign"
        peak = 16 * 8 * packed_width(top) * experiment.num_explained + cached_bytes(plan)
        if len(merged) < methods - external:
            # Scores of some points, what ranking them takes, and a block of a kernel that is computed as a whole.
            rows = min(shape.num_train, kernel_rows(plan.budget_bytes, shape.num_outputs, points))
            held = POINT_COPIES * 8 * shape.num_train * points_at_once(plan) + max(scorer_bytes(plan), ensemble_bytes(plan))
            peak += max(held, shape.num_outputs * (2 * 8 * shape.num_train + rows * 4 * KERNEL_ROW_COPIES * points))
        return StagePlan(self.name, what, seeds * (methods - external), seeds * methods * kept, peak)

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return scorer_seconds(plan, rates) + ensemble_seconds(plan, rates)


def attribution_unit(plan: Plan, seed: int, method: Method) -> AttributionUnit:
    unit = AttributionUnit(seed, method.name, bool(direct_terms(plan.keys, plan.shape, method)), member_work(plan, method))
    if plan.top is None:
        return unit
    together = streamed_methods(plan).get(method.kernel, ()) if is_streamed(plan.keys, method) else ()
    return replace(unit, top=plan.top, merged=tuple(one.name for one in together), points=points_at_once(plan))


def points_at_once(plan: Plan) -> int:
    """Test points of which the scores of all samples fit a quarter of the budget, at least one; all of them where groups are explained."""
    points, room = plan.experiment.num_test_points, plan.budget_bytes // 4
    if plan.experiment.target.group is not None:
        return points
    return max(1, min(points, room // (POINT_COPIES * 8 * plan.shape.num_train)))


def kernel_rows(budget_bytes: int, num_outputs: int, num_points: int) -> int:
    """Training rows of K (rows, C, M) that are multiplied with their importances at once; they fit a quarter of the budget."""
    return max(1, budget_bytes // 4 // (4 * KERNEL_ROW_COPIES * num_outputs * max(1, num_points)))


def write_attribution(artifact: Artifact, method: Method, seed: int, phi: Tensor, ids: Tensor, manifest: dict[str, Any]) -> None:
    """Write phi (N, M) and the full removal orders (M, N) of the training ``ids`` (N,), and commit."""
    from genrep_dist.core.attribution import ranking
    from genrep_dist.workflow.context import to_numpy

    artifact.write("phi", to_numpy(phi), ("train", "test"))
    for sign in SIGNS:
        artifact.write(f"order_{sign}", to_numpy(ranking(phi, ids, len(ids), sign)), ("test", "rank"))
    # By its parts: two names of one method (`representer-point`, `last-layer-final/surrogate`) share this artifact.
    parts = {"kernel": method.kernel, "checkpoint": method.checkpoint, "importance": method.importance}
    artifact.commit({**parts, "seed": seed, **manifest})


def strongest_scores(unit: AttributionUnit, method: Method, context: WorkerContext) -> StrongestScores:
    """The ``unit.top`` strongest scores of each sign of a method, and the sum of all (M,).

    Merged from spans of rows; of a derived kernel, which is stored, from blocks of it; else, as of scorers and of ensembles of such kernels
    or of subnetworks, from the scores of some points at a time.
    """
    from genrep_dist.core.strongest import StrongestScores
    from genrep_dist.workflow.targets import group_means

    seed, points, groups = unit.seed, context.test_points(unit.seed), context.keys.test_groups(unit.seed)
    if unit.merged:
        return merged_spans(read_spans(context, seed, unit.merged, unit.method))
    ids, num_explained = context.train.ids, len(points) if groups is None else len(groups)
    if method.has_kernel and unit.members is None:
        found = StrongestScores(num_explained, unit.top)
        for start, phi in _phi_blocks(method, seed, context):
            found.add(group_means(phi, groups), ids[start : start + len(phi)])
        return found
    parts = []
    for at in range(0, len(points), unit.points):
        scores = group_means(_part_scores(method, seed, context, slice(at, at + unit.points), unit.members), groups)
        parts.append(StrongestScores(scores.shape[1], unit.top))
        parts[-1].add(scores, ids)
    return StrongestScores.of_points(parts)


def _part_scores(method: Method, seed: int, context: WorkerContext, part: slice, members: MemberWork | None) -> Tensor:
    """Phi (N, m) float64 of some of the seed's test points, of a method without a kernel or of an ensemble."""
    points = context.test_points(seed).part(part)
    if members is None:
        return attribution(method, seed, context, points, _no_products)

    def kernel_at(epoch: int) -> Iterator[Tensor]:
        return (block[:, :, part] for block in stored_kernel(context, seed, method)(epoch))

    def own() -> Tensor:
        products = kernel_products(method, seed, context, kernel_at) if method.has_kernel else _no_products
        return attribution(method, seed, context, points, products)

    return ensemble_mean(method, own, seed, context, points, members)


def _phi_blocks(method: Method, seed: int, context: WorkerContext) -> Iterator[tuple[int, Tensor]]:
    """Phi (rows, M) float64 of a method by blocks of its stored kernel, with the first row of each."""
    from genrep_dist.core.attribution import attribute, weighted_sum

    terms, read = context.keys.terms(method), stored_kernel(context, seed, method)
    alphas = [alpha(context, method.importance, seed, method.kernel, term.importance_epoch) for term in terms]
    rates = [context.term_rate(seed, term) for term in terms]
    start = 0
    for blocks in zip(*(read(term.kernel_epoch) for term in terms), strict=True):
        stop = start + len(blocks[0])
        products = [attribute(one[start:stop], block.double()) for one, block in zip(alphas, blocks, strict=True)]
        yield start, weighted_sum(zip(rates, products, strict=True))
        start = stop


def _no_products(term: Term) -> Tensor:
    raise AssertionError(term)  # scores without a kernel have no products


def write_strongest(artifact: Artifact, method: Method, seed: int, found: StrongestScores, manifest: dict[str, Any]) -> None:
    """Write the strongest scores of each sign: ids and scores (M, K), and commit."""
    from genrep_dist.workflow.context import to_numpy

    for sign in SIGNS:
        strongest = found.strongest(sign)
        artifact.write(f"order_{sign}", to_numpy(strongest.ids), ("test", "rank"))
        artifact.write(f"scores_{sign}", to_numpy(strongest.scores), ("test", "rank"))
    parts = {"kernel": method.kernel, "checkpoint": method.checkpoint, "importance": method.importance}
    artifact.commit({**parts, "seed": seed, "top": found.count, "absent": ["phi"], **manifest})


def attribution(method: Method, seed: int, context: WorkerContext, points: TestPoints, products: Products) -> Tensor:
    """Phi (N, M) float64 of a method for ``points``, from the products of its importances and kernels with them."""
    from genrep_dist.core.attribution import random_scores, weighted_sum

    if method.is_random:
        # An order of its own for every (seed, test point).
        return random_scores([derive_seed(seed, "random", test_id) for test_id in points.ids.tolist()], len(context.train.ids))
    if method.scorer_class is not None:
        from genrep_dist.workflow.scores import scores_of

        return scores_of(method, seed, context, points)
    # With one unweighted term this is Eq. 2 as it stands.
    return weighted_sum((context.term_rate(seed, term), products(term)) for term in context.keys.terms(method))


def kernel_products(method: Method, seed: int, context: WorkerContext, kernel_at: KernelBlocks) -> Products:
    """Products from importances and the blocks of a method's kernel."""
    from genrep_dist.core.attribution import attribute

    def product(term: Term) -> Tensor:
        importance = alpha(context, method.importance, seed, method.kernel, term.importance_epoch)
        return attribute(importance, (block.double() for block in kernel_at(term.kernel_epoch)))

    return product


def stored_kernel(context: WorkerContext, seed: int, method: Method) -> KernelBlocks:
    import torch

    def read(epoch: int) -> Iterator[Tensor]:
        reader = context.store.artifact("kernel", context.keys.kernel(seed, method.kernel, epoch)).reader("kernel")
        num_train, *inner = reader.shape
        step = kernel_rows(context.experiment.resources.memory_budget, *inner)
        return (torch.from_numpy(reader.read(slice(at, at + step))) for at in range(0, num_train, step))

    return read


def _stored_terms(context: WorkerContext, seed: int, method: Method) -> Products:
    import torch

    def read(term: Term) -> Tensor:
        key = context.keys.term(seed, method.kernel, term.kernel_epoch, method.importance, term.importance_epoch)
        return torch.from_numpy(context.store.artifact("term", key).read("phi"))

    return read


def stored_attribution(method: Method, seed: int, context: WorkerContext, *, direct: bool, members: MemberWork | None = None) -> Tensor:
    """Phi (N, M) float64 of the seed's test points, or (N, G) of its groups of them, from stored importances and kernels.

    ``direct``: from the stored products of both, as of a method with :func:`~genrep_dist.plan.direct_terms`. ``members``: for an ensemble,
    whose other networks' scores are computed.
    """
    from genrep_dist.workflow.targets import group_means

    kernels = stored_kernel(context, seed, method)
    products = _stored_terms(context, seed, method) if direct else kernel_products(method, seed, context, kernels)
    points = context.test_points(seed)

    def own() -> Tensor:
        return attribution(method, seed, context, points, products)

    phi = own() if members is None else ensemble_mean(method, own, seed, context, points, members)
    return group_means(phi, context.keys.test_groups(seed))


def _efficiency_gap(total: Tensor, seed: int, points: TestPoints, context: WorkerContext, method: Method) -> float:
    """Max |f(x) - sum_i phi(x_i -> x)| over what the seed explains (Definition 1), f the explained output, ``total`` (M,) the sums.

    For a target that is a function of the outputs f is their sum weighted by its derivative: the scores add up to that.
    """
    import torch

    from genrep_dist.core.gradients.model import selected_output
    from genrep_dist.workflow.targets import group_means

    positions = context.keys.test_positions(seed)
    outputs = torch.from_numpy(context.train_artifact(seed).read("outputs_test")[positions]).double()
    epoch = context.keys.method_epochs(method)[0]
    explained = selected_output(outputs, context.output_weights(seed, epoch, points).cpu())
    return float((group_means(explained, context.keys.test_groups(seed)) - total).abs().max())
