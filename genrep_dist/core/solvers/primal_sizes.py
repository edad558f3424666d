"""Sizes of the primal system (:mod:`genrep_dist.core.solvers.primal_system`), for the planner, which does not need torch."""

from __future__ import annotations

BLOCK_NUMEL, MAX_ROWS = 2**20, 4096
"""A block of features holds this many numbers, or an eighth of those of the matrix; and at most so many samples."""
BLOCK_BYTES = 36
"""Memory of one number of a block: as computed, in float64, weighted, and the part that is multiplied, with what is being replaced."""


def block_rows(num_train: int, num_outputs: int, width: int) -> int:
    """Samples in a block of features for D = ``width``: a function of these sizes alone, so that results do not depend on the budget."""
    return max(1, min(num_train, MAX_ROWS, max(BLOCK_NUMEL, width * width // 8) // max(1, num_outputs * width)))


def system_bytes(num_train: int, num_outputs: int, width: int) -> int:
    """Memory of the matrix, which is factorised in place, and of a block of features at work."""
    return 8 * width * width + BLOCK_BYTES * block_rows(num_train, num_outputs, width) * num_outputs * width
