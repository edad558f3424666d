"""How many columns of the gram matrix the surrogate's Nystrom preconditioner uses, and their memory. Needs no torch."""

from __future__ import annotations

MIN_COLUMNS = 64
MAX_COLUMNS = 1024
MAX_BYTES = 2**27
"""Memory limit of the columns: a large gram matrix gets fewer of them."""


def num_nystrom_columns(size: int) -> int:
    """Columns for a gram matrix of ``size`` rows. A function of the size alone, so that results do not depend on a memory budget."""
    return max(1, min(size, max(MIN_COLUMNS, size // 4), MAX_COLUMNS, MAX_BYTES // (16 * size)))


def nystrom_bytes(size: int) -> int:
    """Bytes of the preconditioner's factor and of its copy scaled by the curvature, both float64."""
    return 16 * size * num_nystrom_columns(size)
