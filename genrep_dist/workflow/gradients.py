"""Stage gradients: per-sample features of a block of training rows, written as one block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from genrep_dist.extension import require_returned
from genrep_dist.plan import FLOAT_BYTES, KernelAt, Plan, StagePlan
from genrep_dist.store.feature_table import COLUMNS, TABLE
from genrep_dist.units import RowsUnit
from genrep_dist.workflow.base import ArraySpec, ArtifactSpec, Rates, Stage
from genrep_dist.workflow.blocks import PANEL, block_bytes

if TYPE_CHECKING:
    from genrep_dist.workflow.context import WorkerContext

GPU_FLOP_PER_SECOND, DISK_BYTES_PER_SECOND = 1e13, 1e9
"""Guesses, for plans: float32 on one GPU, and a disk that is written to and read."""


@dataclass(frozen=True)
class GradientUnit(RowsUnit):
    """Features of the training rows ``start`` to ``stop``: one shard."""

    stage: ClassVar[str] = "gradients"


class GradientsStage(Stage[GradientUnit]):
    name = "gradients"
    uses_actors = True

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        for seed in plan.experiment.seeds:
            for kernel, epoch in plan.stored_features:
                units = tuple(GradientUnit(seed, kernel, epoch, *block) for block in plan.blocks(kernel))
                key, manifest = plan.keys.features(seed, kernel, epoch), kernel_manifest(plan, kernel, epoch)
                yield ArtifactSpec("features", key, seed, units, _array(plan, kernel), manifest)

    def run(self, unit: GradientUnit, context: WorkerContext) -> dict[str, float]:
        """Compute and write one block; factored features in whatever form takes the fewest bytes."""
        from genrep_dist.core.gradients.factored import FactoredGradients
        from genrep_dist.store.bfloat16 import upper_halves
        from genrep_dist.store.features import write_block
        from genrep_dist.workflow.context import to_numpy
        from genrep_dist.workflow.features import train_features

        artifact = context.store.artifact("features", context.keys.features(unit.seed, unit.kernel, unit.epoch))
        rows = train_features(context, unit.kernel, unit.seed, unit.epoch, unit.start, unit.stop)
        halves = context.experiment.features.dtype == "bfloat16"
        if isinstance(rows, FactoredGradients):
            num_bytes = write_block(artifact, unit.part, unit.start, rows, bfloat16=halves, seconds=context.elapsed())
        else:
            width = artifact.declared_chunks("features")[1]
            require_returned(
                rows[0].numel() == width,
                context.kernel(unit.kernel),
                "features",
                f"{width} numbers a sample, as sizes() says",
                f"{tuple(rows.shape)}",
                f"kernel {unit.kernel}, seed {unit.seed}, epoch {unit.epoch}",
            )
            values = to_numpy(rows)
            stored = upper_halves(values) if halves else values
            artifact.write_part(unit.part, "features", (unit.start, 0), stored, seconds=context.elapsed())
            num_bytes = stored.nbytes
        return {"rows": float(unit.stop - unit.start), "bytes": float(num_bytes)}

    def plan(self, plan: Plan) -> StagePlan | None:
        stored, seeds = plan.stored_features, len(plan.experiment.seeds)
        if not stored:
            return None
        units = sum(len(plan.blocks(kernel)) for kernel, _ in stored)
        written = sum(plan.shape.num_train * stored_row_bytes(plan, kernel) for kernel, _ in stored)
        what = f"per-sample features of {', '.join(f'{kernel} (epoch {epoch})' for kernel, epoch in stored)}"
        return StagePlan(self.name, what, seeds * units, seeds * written, max(block_bytes(plan, kernel) for kernel, _ in stored))

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return sum(features_seconds(plan, kernel, rates) for kernel, _ in plan.stored_features)


def stored_row_bytes(plan: Plan, kernel: str) -> int:
    """Bytes of one sample's features in the store."""
    return plan.shape.kernels[kernel].stored_bytes // (2 if plan.experiment.features.dtype == "bfloat16" else 1)


def features_seconds(plan: Plan, kernel: str, rates: Rates) -> float:
    """Seconds of one worker to compute the features of all training rows once, for all seeds."""
    passes = plan.shape.kernels[kernel].gradient_passes
    return len(plan.experiment.seeds) * plan.shape.num_train * passes / rates.gradient_rows_per_second


def stored_features(plan: Plan) -> tuple[KernelAt, ...]:
    """Kernels whose per-sample features go to the store.

    K(train, test) passes over them once, and streams. A gram passes over them several times, so storing pays there, unless a GPU
    computes them again in less time than a disk takes to keep them and to read them back. (A CPU takes about as long as a disk, and
    what is stored outlives a kill.) A solve by the primal system passes over them with every product, unless it holds them.
    """
    choice = plan.experiment.resources.features
    if choice == "stream":
        return ()
    passed = {(kernel, epoch) for _, kernel, epoch in plan.needs.primal if not is_held(plan, kernel)}
    paying = passed.union(pair for pair in plan.needs.grams if _storing_pays(plan, *pair))
    crossed = {*plan.needs.cross, *plan.needs.streamed}
    pairs = tuple(sorted(crossed if choice == "store" else paying))
    return tuple(pair for pair in pairs if plan.shape.kernels[pair[0]].storable)


def is_held(plan: Plan, kernel: str) -> bool:
    """Whether a solve by the primal system holds the features of all training rows: as float32 they fit half the memory budget."""
    return FLOAT_BYTES * plan.shape.gram_rows(kernel) * plan.shape.kernels[kernel].row_width <= plan.budget_bytes // 2


def feature_passes(plan: Plan, kernel: str, epoch: int) -> float:
    """How often each training sample's features are used, on average: by K(train, test), and by the tiles of a gram."""
    passes = float((kernel, epoch) in {*plan.needs.cross, *plan.needs.streamed})
    if (kernel, epoch) in plan.needs.grams:
        # A tile uses its left rows once, and its right ones once for every panel of these; on the diagonal half of them.
        tile = plan.gram_tiles[kernel]
        tiles, panels = -(-plan.shape.num_train // tile), -(-tile // (PANEL * plan.block_rows[kernel]))
        passes += tiles * (1 + panels) / 2
    return passes


def kernel_manifest(plan: Plan, kernel: str, epoch: int) -> dict[str, object]:
    """What the manifest of an artifact of a kernel says, with the projection of its features where there is one."""
    found = None if kernel in plan.keys.own_kernels else plan.experiment.kernel(kernel)
    projection = plan.experiment.projection if found is not None and "projection" in found.key_settings() else None
    return {"kernel": kernel, "epoch": epoch, **({} if projection is None else {"projection": projection.model_dump(mode="json")})}


def _storing_pays(plan: Plan, kernel: str, epoch: int) -> bool:
    sizes = plan.shape.kernels[kernel]
    compute_seconds = plan.shape.gradient_flop * sizes.gradient_passes / GPU_FLOP_PER_SECOND
    if not sizes.factored or not plan.shape.on_gpu or not compute_seconds:
        return True
    disk_seconds, passes = stored_row_bytes(plan, kernel) / DISK_BYTES_PER_SECOND, feature_passes(plan, kernel, epoch)
    return compute_seconds + (1 + passes) * disk_seconds <= passes * compute_seconds


def _array(plan: Plan, kernel: str) -> ArraySpec:
    num_train, sizes, rows = plan.shape.num_train, plan.shape.kernels[kernel], plan.block_rows[kernel]
    if not sizes.factored:
        dtype = "uint16" if plan.experiment.features.dtype == "bfloat16" else "float32"
        return ArraySpec("features", (num_train, sizes.held), (rows, sizes.held), ("train", "feature"), dtype)
    # The blocks themselves are as long as their samples' factors happen to be.
    return ArraySpec(TABLE, (num_train, len(COLUMNS)), (rows, len(COLUMNS)), ("train", "column"), "int64")
