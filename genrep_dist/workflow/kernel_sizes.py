"""How K(train, test) of a derived kernel is divided in the store, for the planner, which does not need torch."""

from __future__ import annotations

CHUNK_NUMEL = 2**22
"""Numbers of a chunk of rows."""


def chunk_rows(num_train: int, num_outputs: int, num_points: int) -> int:
    """Training rows of a chunk: a function of these sizes alone, so that stores do not depend on the memory budget."""
    return max(1, min(num_train, CHUNK_NUMEL // max(1, num_outputs * num_points)))
