"""Stage strongest: the strongest scores of methods with a kernel, from blocks of training rows. K(train, test) is not stored.

The methods of one kernel share its blocks. A unit passes over a span of training rows and writes, for each method and test point, the
strongest scores of that span; the stage attributions merges the spans of one method.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from genrep_dist.core.methods import Method
from genrep_dist.plan import FLOAT_BYTES, Plan, StagePlan, TermAt, direct_terms, is_streamed
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArraySpec, ArtifactSpec, Rates, Stage
from genrep_dist.workflow.blocks import block_bytes
from genrep_dist.workflow.gradients import features_seconds
from genrep_dist.workflow.importances import alpha

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from genrep_dist.config.keys import Term
    from genrep_dist.core.strongest import StrongestScores
    from genrep_dist.workflow.context import TestPoints, WorkerContext

NUMBER_BYTES = 2 * FLOAT_BYTES
SPAN_SHARE = 16
"""Rows of a span for each score that is kept of a sign: what spans write is then a quarter of all scores at most."""
HELD_COPIES = 5
"""Times 8 bytes: a kept or added score with its id, as it is and sorted."""


def array_name(rows: int) -> str:
    """The array of spans of so many rows."""
    return f"strongest-{rows}"


def packed_width(count: int) -> int:
    """Numbers of one point in :meth:`~genrep_dist.core.strongest.StrongestScores.packed`."""
    return 4 * count + 1


@dataclass(frozen=True)
class StrongestUnit(Unit):
    """The strongest scores among the training rows ``start`` to ``stop``, of the ``methods`` of one kernel.

    ``rows``: those of a span but the last; they name array and part, so that runs whose budgets divide the rows otherwise do not mix.
    ``block``: rows that are multiplied at once. ``direct``: the methods whose products are computed without K. ``stored``: epochs at which
    the kernel's features are read. ``number``: which of the spans it is.
    """

    kernel: str
    methods: tuple[str, ...]
    direct: tuple[str, ...]
    stored: tuple[int, ...]
    start: int
    stop: int
    rows: int
    block: int
    count: int
    number: int
    stage: ClassVar[str] = "strongest"

    @property
    def part(self) -> str:
        return f"rows-{self.rows}-{self.start:09d}"

    @property
    def label(self) -> str:
        return f"strongest scores seed={self.seed} {self.kernel} rows {self.start}-{self.stop}"

    def samples(self, train_ids: npt.NDArray[np.int64]) -> tuple[str, list[int]]:
        return "samples", train_ids[self.start : self.stop].tolist()


class StrongestStage(Stage[StrongestUnit]):
    name = "strongest"
    uses_actors = True

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        methods = streamed_methods(plan)
        return (strongest_artifact(plan, seed, kernel, methods[kernel]) for seed in plan.experiment.seeds for kernel in methods)

    def run(self, unit: StrongestUnit, context: WorkerContext) -> dict[str, float]:
        return run_strongest(unit, context)

    def plan(self, plan: Plan) -> StagePlan | None:
        methods, seeds = streamed_methods(plan), len(plan.experiment.seeds)
        if not methods:
            return None
        spans = sum(len(row_spans(plan, kernel)) for kernel in methods)
        names = ", ".join(methods)
        what = f"the {plan.top:,} strongest scores of each sign of {sum(map(len, methods.values()))} methods, without storing K ({names})"
        written = sum(written_bytes(plan, kernel) for kernel in methods)
        return StagePlan(self.name, what, seeds * spans, seeds * written, max(strongest_bytes(plan, kernel) for kernel in methods))

    def seconds(self, plan: Plan, rates: Rates) -> float:
        computed = [(kernel, epoch) for kernel, epoch in plan.needs.streamed if (kernel, epoch) not in plan.stored_features]
        seconds = sum(features_seconds(plan, kernel, rates) for kernel, _ in computed)
        for kernel, methods in streamed_methods(plan).items():
            # Of each other network all products of one kernel come from one pass at each epoch.
            for epoch in {epoch for method in methods for epoch in plan.keys.method_epochs(method)}:
                at_epoch = [len(plan.keys.ensemble_seeds(0, method)) for method in methods if epoch in plan.keys.method_epochs(method)]
                seconds += max(at_epoch) * features_seconds(plan, kernel, rates)
        return seconds


def streamed_methods(plan: Plan) -> dict[str, tuple[Method, ...]]:
    """The methods whose strongest scores are taken from blocks, by kernel; one of those that share an artifact."""
    found: dict[str, dict[Method, Method]] = {}
    for method in plan.experiment.parsed_methods:
        if is_streamed(plan.keys, method):
            found.setdefault(method.kernel, {}).setdefault(replace(method, name=""), method)
    return {kernel: tuple(methods.values()) for kernel, methods in found.items()}


def strongest_artifact(plan: Plan, seed: int, kernel: str, methods: tuple[Method, ...]) -> ArtifactSpec:
    """The artifact of one kernel: a part for each span of rows."""
    assert plan.top is not None
    units, inner = strongest_units(plan, seed, kernel, methods), (len(methods), plan.experiment.num_explained, packed_width(plan.top))
    array = ArraySpec(array_name(units[0].rows), (len(units), *inner), (1, *inner), ("span", "method", "test", "number"), "int64")
    about = {"methods": [method.name for method in methods], "top": plan.top, "rows": units[0].rows}
    return ArtifactSpec("strongest", plan.keys.strongest(seed, methods), seed, units, array, about)


def strongest_units(plan: Plan, seed: int, kernel: str, methods: tuple[Method, ...]) -> tuple[StrongestUnit, ...]:
    assert plan.top is not None
    direct = tuple(method.name for method in methods if direct_terms(plan.keys, plan.shape, method))
    stored = tuple(epoch for name, epoch in plan.stored_features if name == kernel)
    about, spans = (kernel, tuple(method.name for method in methods), direct, stored), row_spans(plan, kernel)
    sizes = spans[0][1], plan.block_rows[kernel], plan.top
    return tuple(StrongestUnit(seed, *about, *span, *sizes, number) for number, span in enumerate(spans))


def row_spans(plan: Plan, kernel: str, top: int | None = None, num_points: int | None = None) -> list[tuple[int, int]]:
    """(start, stop) of the rows of one unit, whole blocks: enough for few numbers to be written, and so many that scores fit the budget.

    ``top`` and ``num_points``: by default those of the plan.
    """
    block, total, count, points = plan.block_rows[kernel], plan.shape.num_train, top or plan.top, num_points
    assert count is not None
    points = plan.experiment.num_test_points if points is None else points
    fitting = plan.budget_bytes // 8 // (HELD_COPIES * NUMBER_BYTES * max(1, points))
    rows = max(1, min(SPAN_SHARE * count, fitting) // block) * block
    return [(start, min(start + rows, total)) for start in range(0, total, rows)]


def run_strongest(unit: StrongestUnit, context: WorkerContext) -> dict[str, float]:
    """Compute and write the part of one span."""
    import torch

    from genrep_dist.core.strongest import StrongestScores
    from genrep_dist.workflow.context import to_numpy
    from genrep_dist.workflow.targets import group_means

    points, groups = context.test_points(unit.seed), context.keys.test_groups(unit.seed)
    packed, ids = [], context.train.ids[unit.start : unit.stop]
    for phi in span_scores(unit, context, points):
        scores = group_means(phi, groups)
        found = StrongestScores(scores.shape[1], unit.count)
        found.add(scores, ids)
        packed.append(found.packed())
    methods = [context.experiment.method(name) for name in unit.methods]
    artifact = context.store.artifact("strongest", context.keys.strongest(unit.seed, methods))
    artifact.write_part(
        unit.part, array_name(unit.rows), (unit.number, 0, 0, 0), to_numpy(torch.stack(packed)[None]), seconds=context.elapsed()
    )
    return {"rows": float(unit.stop - unit.start)}


def span_scores(unit: StrongestUnit, context: WorkerContext, points: TestPoints) -> list[Tensor]:
    """Phi (rows, M) float64 of each of the unit's methods. Blocks, products and sums are those of a run that keeps all scores."""
    methods = [context.experiment.method(name) for name in unit.methods]
    totals = _model_scores(unit, methods, context, points)
    others = max((context.keys.ensemble_seeds(unit.seed, method) for method in methods), key=len)
    for index, other in enumerate(others, start=1):
        # Ensembles share their first networks, and a network's features serve all methods of the kernel.
        places = [place for place, method in enumerate(methods) if method.has_other_models and method.networks > index]
        found = _model_scores(replace(unit, seed=other, stored=()), [methods[place] for place in places], context, points)
        for place, scores in zip(places, found, strict=True):
            totals[place] = totals[place] + scores
    return [total / method.networks if method.has_other_models else total for total, method in zip(totals, methods, strict=True)]


def _model_scores(unit: StrongestUnit, methods: Sequence[Method], context: WorkerContext, points: TestPoints) -> list[Tensor]:
    """Phi (rows, M) float64 of ``methods``, of the network of the unit's seed alone."""
    from genrep_dist.core.attribution import weighted_sum

    products = _products(unit, methods, context, points)
    return [
        weighted_sum((context.term_rate(unit.seed, term), products[_product_of(unit, method, term)]) for term in context.keys.terms(method))
        for method in methods
    ]


def _product_of(unit: StrongestUnit, method: Method, term: Term) -> tuple[bool, TermAt]:
    """Of a product of a method: whether it is direct, and what it is made of."""
    return method.name in unit.direct, (unit.kernel, term.kernel_epoch, method.importance, term.importance_epoch)


def _products(
    unit: StrongestUnit, methods: Sequence[Method], context: WorkerContext, points: TestPoints
) -> dict[tuple[bool, TermAt], Tensor]:
    """Sum_c alpha_c K_c (rows, M) float64 of every product of ``methods``. K is computed once for each epoch and block."""
    import torch

    from genrep_dist.core.attribution import attribute
    from genrep_dist.workflow.kernels import kernel_block
    from genrep_dist.workflow.terms import product_block

    wanted = dict.fromkeys(_product_of(unit, method, term) for method in methods for term in context.keys.terms(method))
    blocks = [(at, min(at + unit.block, unit.stop)) for at in range(unit.start, unit.stop, unit.block)]
    # Of this span alone, so that the importances of all samples are not kept.
    alphas = {one: alpha(context, one[1][2], unit.seed, unit.kernel, one[1][3])[unit.start : unit.stop].clone() for one in wanted}
    parts: dict[tuple[bool, TermAt], list[Tensor]] = {one: [] for one in wanted}

    def rows(one: tuple[bool, TermAt], start: int, stop: int) -> Tensor:
        return alphas[one][start - unit.start : stop - unit.start]

    for one in wanted:
        is_direct, (kernel, epoch, importance, _) = one
        if is_direct:
            where = f"kernel {kernel}, importance {importance}, seed {unit.seed}, epoch {epoch}"
            parts[one] = [
                product_block(context, kernel, unit.seed, epoch, rows(one, start, stop), start, points, where) for start, stop in blocks
            ]
    with_kernel = [one for one in wanted if not one[0]]
    for epoch in dict.fromkeys(one[1][1] for one in with_kernel):
        for start, stop in blocks:
            block = kernel_block(context, unit.kernel, unit.seed, epoch, start, stop, points, stored=epoch in unit.stored)
            # As it would be stored: float32.
            numbers = block.float().cpu().double()
            for one in with_kernel:
                if one[1][1] == epoch:
                    parts[one].append(attribute(rows(one, start, stop), numbers))
    return {one: torch.cat(found) for one, found in parts.items()}


def merged_spans(spans: Iterable[Tensor]) -> StrongestScores:
    """The strongest of all spans, from what each has kept (M, numbers). One span is held at a time."""
    from genrep_dist.core.strongest import StrongestScores

    found: StrongestScores | None = None
    for packed in spans:
        one = StrongestScores.unpacked(packed)
        if found is None:
            found = one
        else:
            found.merge(one)
    assert found is not None
    return found


def read_spans(context: WorkerContext, seed: int, methods: tuple[str, ...], name: str) -> Iterator[Tensor]:
    """What each span has kept of one method, (M, numbers)."""
    import torch

    artifact = context.store.artifact("strongest", context.keys.strongest(seed, [context.experiment.method(one) for one in methods]))
    reader, at = artifact.reader(array_name(artifact.manifest()["rows"])), methods.index(name)
    return (torch.from_numpy(reader.read(slice(span, span + 1))[0, at]) for span in range(reader.shape[0]))


def strongest_bytes(plan: Plan, kernel: str) -> int:
    """Memory of a unit: a block of K, the scores of a span by product, what is kept of them, and the importances of all samples once."""
    assert plan.top is not None
    methods, points = streamed_methods(plan)[kernel], plan.experiment.num_test_points
    rows = max(stop - start for start, stop in row_spans(plan, kernel))
    products = sum(len(plan.keys.terms(method)) for method in methods)
    # Sums over networks, beside the products of one.
    products += len(methods) if any(method.has_other_models for method in methods) else 0
    kept = HELD_COPIES * (rows + plan.top) + len(methods) * 4 * plan.top
    read = 2 * plan.shape.num_train * plan.shape.num_outputs
    return block_bytes(plan, kernel) + NUMBER_BYTES * (points * (rows * (products + 1) + kept) + read)


def written_bytes(plan: Plan, kernel: str) -> int:
    """Bytes of all spans of one seed."""
    assert plan.top is not None
    each = len(streamed_methods(plan)[kernel]) * plan.experiment.num_explained * packed_width(plan.top)
    return NUMBER_BYTES * len(row_spans(plan, kernel)) * each
