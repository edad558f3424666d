"""How training rows are cut into blocks of features and tiles of a gram, and the memory that they take at work."""

from __future__ import annotations

import math

from genrep_dist.core.kernels.base import KernelSizes
from genrep_dist.errors import PlanError
from genrep_dist.plan import FLOAT_BYTES, MAX_BLOCK_ROWS, Plan

SHARD_BYTES = 64 * 2**20
"""No shard of features is larger: a unit of work that is lost costs seconds."""
LARGE_ROW_NUMEL = 2**17
"""Numbers of a sample above which an error proposes a projection."""
TILES_HELD = 6
"""Tiles of a gram that fit half the budget. Three are held at once (the sum, its encoded file, what is read back); the rest is for
the store's upload buffers, for what the allocator keeps, and for a process whose libraries and data take more than the other half."""
PANEL = 2
"""Left blocks of features that a tile of the gram keeps, ready to be multiplied, while the right ones are read one after the other."""
BLOCKS_HELD = PANEL + 3
"""Blocks of features that a tile has in memory at once: the panel, a right block, the one that is being read, and what reading takes."""
MODELS_HELD = 5
"""Models that a worker holds at most: recently used ones, one that is being built, and its numbers as they are read."""
CROSS_COPIES = 3
"""Copies of a block of K(train, test): its parts, the whole, and what writing it takes."""


def numbers_at_work(sizes: KernelSizes) -> int:
    """Numbers that one row of a block takes at work: BLOCKS_HELD blocks. Of factors, a panel is held twice while its blocks are joined,
    and what a panel and the right block are expanded to comes on top.
    """
    if sizes.factored:
        return (BLOCKS_HELD + PANEL) * sizes.held + (PANEL + 1) * sizes.expanded
    return BLOCKS_HELD * sizes.held


def cached_bytes(plan: Plan) -> int:
    """Memory of what a worker keeps between units: recently used models at most."""
    return (MODELS_HELD - 1) * plan.shape.checkpoint_bytes


def point_bytes(sizes: KernelSizes) -> int:
    """Memory of the features of one test point, prepared for products: as if all outputs were explained."""
    return FLOAT_BYTES * (sizes.held + sizes.expanded)


def cross_bytes(num_outputs: int, num_points: int) -> int:
    """Memory of one training row of K (rows, C, M)."""
    return CROSS_COPIES * FLOAT_BYTES * num_outputs * num_points


def worker_bytes(plan: Plan, kernel: str) -> int:
    """Memory that every unit with features of a kernel takes beside them: models, and a pass through one of them."""
    rows = min(plan.gradient_rows, plan.block_rows[kernel])
    passes = plan.gradient_row_bytes * rows if plan.shape.kernels[kernel].factored else plan.prediction_bytes
    return MODELS_HELD * plan.shape.checkpoint_bytes + passes


def block_bytes(plan: Plan, kernel: str) -> int:
    """Memory of a block of features at work, of the prepared test points, and of K with them."""
    sizes, points = plan.shape.kernels[kernel], plan.experiment.num_test_points
    row_bytes = FLOAT_BYTES * numbers_at_work(sizes) + cross_bytes(plan.shape.num_outputs, points) + sizes.pair_bytes * points
    return row_bytes * plan.block_rows[kernel] + point_bytes(sizes) * points + worker_bytes(plan, kernel)


def tile_bytes(plan: Plan, kernel: str) -> int:
    """Memory of one tile of the gram and of the blocks of features that are multiplied for it."""
    sizes = plan.shape.kernels[kernel]
    edge = min(plan.gram_tiles[kernel], plan.shape.num_train) * sizes.gram_rows
    rows = plan.block_rows[kernel]
    return TILES_HELD * FLOAT_BYTES * edge * edge + rows * (FLOAT_BYTES * numbers_at_work(sizes) + sizes.pair_bytes * rows)


def block_rows(kernel: str, sizes: KernelSizes, num_train: int, budget_bytes: int, num_test: int, num_outputs: int = 1) -> int:
    """Training rows in one block of features: the block at work and the test rows fit half the budget. PlanError if one row does not.

    A block of K with the ``num_test`` points fits an eighth, or has one row; so does what a pairwise kernel takes for two blocks.
    """
    row_bytes, test_bytes = FLOAT_BYTES * numbers_at_work(sizes), point_bytes(sizes)
    room = budget_bytes // 2 - num_test * test_bytes
    if room < row_bytes:
        large = numbers_at_work(sizes) > LARGE_ROW_NUMEL  # of smaller rows a projection to 1,024 numbers a layer keeps more, not less
        raise PlanError(
            "the memory budget is too small for one training sample's features",
            where=f"resources.memory_budget, kernel {kernel}",
            expected=f"at least {2 * (row_bytes + num_test * test_bytes):,} bytes (a row of {row_bytes:,} bytes and "
            f"{num_test} test rows of {test_bytes:,} bytes in half of it)",
            got=f"{budget_bytes:,} bytes",
            remedy="raise resources.memory_budget, or explain fewer test points at once"
            + (", or keep some random numbers of each layer (projection: {kind: factored, dim: 1024})" if large else ""),
        )
    # No more of a sample is ever stored than its factors as they are.
    multiplied = budget_bytes // 8 // max(1, cross_bytes(num_outputs, num_test), sizes.pair_bytes * num_test)
    if sizes.pair_bytes:
        multiplied = min(multiplied, math.isqrt(budget_bytes // 8 // sizes.pair_bytes))
    return max(1, min(room // row_bytes, multiplied, SHARD_BYTES // (FLOAT_BYTES * sizes.held), MAX_BLOCK_ROWS, num_train))


def gram_tile_rows(kernel: str, sizes: KernelSizes, num_train: int, budget_bytes: int, rows_of_block: int) -> int:
    """Training rows along a tile's edge, a whole number of blocks: TILES_HELD tiles fit half the budget. PlanError if none does."""
    per_row = sizes.gram_rows
    edge = int((budget_bytes / 2 / (TILES_HELD * FLOAT_BYTES)) ** 0.5) // per_row
    if edge < 1:
        raise PlanError(
            "the memory budget is too small for one tile of the gram",
            where=f"resources.memory_budget, kernel {kernel}",
            expected=f"at least {2 * TILES_HELD * FLOAT_BYTES * per_row * per_row:,} bytes",
            got=f"{budget_bytes:,} bytes",
            remedy="raise resources.memory_budget",
        )
    if edge >= num_train:
        return num_train
    return edge // rows_of_block * rows_of_block if edge >= rows_of_block else edge
