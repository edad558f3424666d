"""Attempts at a unit: how many there are, and what the last one says about the unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from genrep_dist.errors import FailureKind
from genrep_dist.executors.base import Outcome
from genrep_dist.units import Unit


@dataclass(frozen=True)
class Attempt:
    """One attempt at a unit. ``all_crashed``: whether every earlier attempt ended its process."""

    unit: Unit
    number: int = 1
    all_crashed: bool = True

    def following(self, outcome: Outcome, retries: int) -> Attempt | Outcome:
        """The next attempt at the unit, or its final outcome. It crashed only if every attempt did: a lost node is not the unit's fault."""
        all_crashed = self.all_crashed and outcome.crashed
        if outcome.needs_retry(retries):
            return Attempt(self.unit, self.number + 1, all_crashed)
        if outcome.failure is not None and outcome.crashed and not all_crashed:
            return replace(outcome, failure=replace(outcome.failure, kind=FailureKind.RETRYABLE))
        return outcome
