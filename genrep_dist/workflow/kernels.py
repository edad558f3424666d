"""Stage kernels: blocks of K(train, test), of its products with importances, and tiles of the train-by-train gram.

They are computed from stored or streamed features; products with importances from gradients of their own (`workflow/terms.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.plan import FLOAT_BYTES, Plan, StagePlan
from genrep_dist.units import RowsUnit, Unit
from genrep_dist.workflow.base import ArraySpec, ArtifactSpec, Rates, SampleAxis, Stage
from genrep_dist.workflow.blocks import MODELS_HELD, block_bytes, tile_bytes
from genrep_dist.workflow.gradients import feature_passes, features_seconds, kernel_manifest
from genrep_dist.workflow.prefetch import Prefetcher
from genrep_dist.workflow.terms import NUMBER_BYTES, TermUnit, run_term, term_array, term_bytes, term_units

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.workflow.context import TestPoints, WorkerContext
    from genrep_dist.workflow.returned import Rows


@dataclass(frozen=True)
class KernelUnit(RowsUnit):
    """K(train rows ``start`` to ``stop``, the seed's test points). ``stored``: from stored features; else they are computed."""

    stored: bool
    stage: ClassVar[str] = "kernels"


@dataclass(frozen=True)
class GramUnit(Unit):
    """One tile of the train-by-train gram, ``row`` <= ``column`` in tiles of ``tile`` training rows, multiplied in blocks of ``block``."""

    kernel: str
    epoch: int
    row: int
    column: int
    tile: int
    block: int
    stored: bool
    stage: ClassVar[str] = "kernels"

    @property
    def part(self) -> str:
        return f"tile-{self.row:06d}-{self.column:06d}"

    @property
    def label(self) -> str:
        return f"gram seed={self.seed} {self.kernel} epoch={self.epoch} tile ({self.row}, {self.column})"

    def samples(self, train_ids: npt.NDArray[np.int64]) -> tuple[str, list[int]]:
        tiles = sorted({self.row, self.column})
        return "samples", np.concatenate([train_ids[at * self.tile : (at + 1) * self.tile] for at in tiles]).tolist()


class KernelsStage(Stage[KernelUnit | TermUnit | GramUnit]):
    name = "kernels"
    uses_actors = True

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.needs.cross:
                stored = (kernel, epoch) in plan.stored_features
                blocks = tuple(KernelUnit(seed, kernel, epoch, *block, stored) for block in plan.blocks(kernel))
                key, manifest = plan.keys.kernel(seed, kernel, epoch), kernel_manifest(plan, kernel, epoch)
                yield ArtifactSpec("kernel", key, seed, blocks, _cross_array(plan, kernel), manifest)
            for term in plan.needs.terms:
                kernel, epoch, importance, importance_epoch = term
                manifest = {**kernel_manifest(plan, kernel, epoch), "importance": importance, "importance_epoch": importance_epoch}
                key, units = plan.keys.term(seed, *term), term_units(plan, seed, term)
                yield ArtifactSpec("term", key, seed, units, term_array(plan, kernel), manifest)
            for kernel, epoch in plan.needs.grams:
                tiles = tuple(gram_units(plan, seed, kernel, epoch))
                key, manifest = plan.keys.gram(seed, kernel, epoch), kernel_manifest(plan, kernel, epoch)
                yield ArtifactSpec("gram", key, seed, tiles, _gram_array(plan, kernel), manifest)

    def run(self, unit: KernelUnit | TermUnit | GramUnit, context: WorkerContext) -> dict[str, float]:
        if isinstance(unit, TermUnit):
            return run_term(unit, context)
        return _run_tile(unit, context) if isinstance(unit, GramUnit) else _run_block(unit, context)

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        arrays: dict[str, dict[str, SampleAxis]] = {"kernel": {"kernel": ("train", 0)}, "term": {"phi": ("train", 0)}}
        return arrays.get(kind, {})

    def plan(self, plan: Plan) -> StagePlan | None:
        cross, grams, terms, shape = plan.needs.cross, plan.needs.grams, plan.needs.terms, plan.shape
        if not cross and not terms and not grams:
            return None
        blocked = [kernel for kernel, _ in cross] + [kernel for kernel, *_ in terms]
        seeds, blocks = len(plan.experiment.seeds), sum(len(plan.blocks(kernel)) for kernel in blocked)
        tiles = sum(len(plan.tiles(kernel)) for kernel, _ in grams)
        written = len(cross) * FLOAT_BYTES * shape.num_train * shape.num_outputs * plan.experiment.num_test_points
        written += len(terms) * NUMBER_BYTES * shape.num_train * plan.experiment.num_test_points
        written += sum(_gram_bytes(plan, kernel) for kernel, _ in grams)
        peaks = [block_bytes(plan, kernel) for kernel, _ in cross]
        peaks += [term_bytes(plan, kernel) for kernel, *_ in terms]
        # A pass that computes features has the room of what reading them takes.
        peaks += [tile_bytes(plan, kernel) + MODELS_HELD * shape.checkpoint_bytes for kernel, _ in grams]
        streamed = len([pair for pair in cross if pair not in plan.stored_features])
        what = f"{len(cross)} K(train, test) ({streamed} streamed), {len(grams)} grams in {tiles} tiles"
        if terms:
            reason = f"1 vector-Jacobian product a sample instead of {shape.num_outputs}, because their importances are known"
            what += f", {len(terms)} products with importances without K ({reason})"
        return StagePlan(self.name, what, seeds * (blocks + tiles), seeds * written, max(peaks))

    def seconds(self, plan: Plan, rates: Rates) -> float:
        streamed = sorted({*plan.needs.cross, *plan.needs.grams} - set(plan.stored_features))
        seconds = sum(feature_passes(plan, kernel, epoch) * features_seconds(plan, kernel, rates) for kernel, epoch in streamed)
        # Of all outputs, a term differentiates one sum.
        seconds += sum(features_seconds(plan, kernel, rates) / plan.shape.kernels[kernel].gram_rows for kernel, *_ in plan.needs.terms)
        pairs = len(plan.experiment.seeds) * plan.shape.num_train**2 / 2
        products = sum(plan.shape.kernels[kernel].products for kernel, _ in plan.needs.grams)
        return seconds + pairs * products / rates.multiply_adds_per_second


def gram_units(plan: Plan, seed: int, kernel: str, epoch: int) -> Iterator[GramUnit]:
    """The tiles of one gram: the upper half and the diagonal."""
    stored, tile, block = (kernel, epoch) in plan.stored_features, plan.gram_tiles[kernel], plan.block_rows[kernel]
    return (GramUnit(seed, kernel, epoch, row, column, tile, block, stored) for row, column in plan.tiles(kernel))


def kernel_block(
    context: WorkerContext,
    kernel: str,
    seed: int,
    epoch: int,
    start: int,
    stop: int,
    points: TestPoints,
    *,
    stored: bool,
    read: Callable[[int, int], Rows] | None = None,
) -> Tensor:
    """K (rows, C, M) of the training rows ``start`` to ``stop`` with test points. ``read``: what has the features of rows at hand."""
    import torch

    from genrep_dist.core.kernels.blocks import per_output
    from genrep_dist.workflow.features import features_reader, pairwise_block, pass_rows, point_block, point_features

    num_outputs, computed = context.num_outputs(seed), context.kernel(kernel)
    outputs = context.output_weights(seed, epoch, points)
    if not isinstance(computed, FeatureKernel):
        scalar = pairwise_block(context, kernel, seed, epoch, context.train.inputs[start:stop], points.inputs)
        return per_output(scalar, outputs, num_outputs)
    # The few test points are prepared once and kept. Training rows pass by a few at a time, stored or computed, so that only a few are
    # ever held, and in the same steps, so that both give the same bits.
    rows = read or features_reader(context, kernel, seed, epoch, stored=stored)
    prepared = point_features(context, kernel, seed, epoch, points)
    where = f"kernel {kernel}, seed {seed}, epoch {epoch}"
    at_once = pass_rows(context, computed, context.model(seed, epoch))
    step = stop - start if stored else at_once
    blocks = []
    for first in range(start, stop, step):
        some = rows(first, min(first + step, stop))
        parts = (_part(some, at, min(at + at_once, len(some))) for at in range(0, len(some), at_once))
        blocks += [point_block(computed, part, prepared, outputs, num_outputs, where) for part in parts]
    return torch.cat(blocks)


def _run_block(unit: KernelUnit, context: WorkerContext) -> dict[str, float]:
    """K of one block of training rows with all test points of the seed: (rows, C, M)."""
    from genrep_dist.workflow.context import to_numpy

    points = context.test_points(unit.seed)
    block = kernel_block(context, unit.kernel, unit.seed, unit.epoch, unit.start, unit.stop, points, stored=unit.stored)
    artifact = context.store.artifact("kernel", context.keys.kernel(unit.seed, unit.kernel, unit.epoch))
    artifact.write_part(unit.part, "kernel", (unit.start, 0, 0), to_numpy(block.float()), seconds=context.elapsed())
    return {"rows": float(unit.stop - unit.start)}


def _run_tile(unit: GramUnit, context: WorkerContext) -> dict[str, float]:
    """One tile of the gram. Memory: :func:`~genrep_dist.workflow.blocks.tile_bytes`.

    Stored features are read by a thread while the block before them is multiplied.
    """
    from genrep_dist.workflow.features import features_reader, pairwise_block
    from genrep_dist.workflow.gram_tiles import feature_products, gram_tile, reads

    num_train, inputs = len(context.train.ids), context.train.inputs
    artifact = context.store.artifact("gram", context.keys.gram(unit.seed, unit.kernel, unit.epoch))
    # The grid counts rows of the gram, C of them for each training row where the kernel is matrix-valued.
    edge = artifact.declared_chunks("gram")
    spans, across = ((at * unit.tile, min((at + 1) * unit.tile, num_train)) for at in (unit.row, unit.column))
    if isinstance(context.kernel(unit.kernel), FeatureKernel):
        read = features_reader(context, unit.kernel, unit.seed, unit.epoch, stored=unit.stored)
        # Features that are computed have no disk to wait for.
        with Prefetcher(read, reads(spans, across, unit.block) if unit.stored else ()) as rows:
            tile = gram_tile(feature_products(rows, unit.block), spans, across, unit.block)
    else:

        def product(left: tuple[int, int], right: tuple[int, int]) -> Tensor:
            return pairwise_block(context, unit.kernel, unit.seed, unit.epoch, inputs[slice(*left)], inputs[slice(*right)])

        # The memory that a pairwise kernel takes for more than a block is unknown.
        tile = gram_tile(product, spans, across, unit.block, panel=1)
    artifact.write_part(unit.part, "gram", (unit.row * edge[0], unit.column * edge[1]), tile, seconds=context.elapsed())
    return {"numbers": float(tile.size)}


def _part(rows: Rows, start: int, stop: int) -> Rows:
    from genrep_dist.core.gradients.factored import FactoredGradients

    return rows.part(start, stop) if isinstance(rows, FactoredGradients) else rows[start:stop]


def _cross_array(plan: Plan, kernel: str) -> ArraySpec:
    inner = (plan.shape.num_outputs, plan.experiment.num_test_points)
    return ArraySpec("kernel", (plan.shape.num_train, *inner), (plan.block_rows[kernel], *inner), ("train", "output", "test"))


def _gram_array(plan: Plan, kernel: str) -> ArraySpec:
    size, edge = plan.shape.gram_rows(kernel), plan.gram_tiles[kernel] * plan.shape.kernels[kernel].gram_rows
    return ArraySpec("gram", (size, size), (edge, edge), ("row", "column"))


def _gram_bytes(plan: Plan, kernel: str) -> int:
    """Half of the tiles, and the diagonal ones."""
    size, edge = plan.shape.gram_rows(kernel), plan.gram_tiles[kernel] * plan.shape.kernels[kernel].gram_rows
    return FLOAT_BYTES * size * (size + edge) // 2
