"""How many columns of a gram the surrogate's solver looks at, and the memory they take; known to the planner without torch."""

from __future__ import annotations

MAX_LANDMARKS = 1024
FEW = 64
MAX_LANDMARK_BYTES = 2**27
"""With many rows there are fewer landmarks."""


def num_landmarks(size: int) -> int:
    """How many landmarks a gram of ``size`` rows gets: a function of the size alone, so that the same question has the same answer."""
    return max(1, min(size, max(FEW, size // 4), MAX_LANDMARKS, MAX_LANDMARK_BYTES // (16 * size)))


def landmark_bytes(size: int) -> int:
    """Bytes of the landmarks' factor and of its copy that is spread by the curvature, both float64."""
    return 16 * size * num_landmarks(size)
