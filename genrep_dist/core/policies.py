"""How a model is retrained: with which random numbers, and in which batches."""

from __future__ import annotations

from typing import Literal

RetrainPolicy = Literal["same", "fresh", "rebatch", "fresh-rebatch"]
"""``same``: the original run's initial parameters and order; a removed row leaves its batch, and every other row keeps its own.
``rebatch``: the same initial parameters and order; an epoch's remaining rows are divided into new batches, so that fewer rows take fewer
steps. ``fresh`` and ``fresh-rebatch``: the same two, with initial parameters and orders of their own for each removed set."""


def is_fresh(policy: str) -> bool:
    """Whether a retrained model has random numbers of its own."""
    return policy in ("fresh", "fresh-rebatch")


def is_rebatched(policy: str) -> bool:
    """Whether the remaining rows are divided into new batches."""
    return policy in ("rebatch", "fresh-rebatch")


def fresh_policy(policy: RetrainPolicy) -> RetrainPolicy:
    """The policy with the same batches and random numbers of its own."""
    return "fresh-rebatch" if is_rebatched(policy) else "fresh"
