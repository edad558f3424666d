"""Whether a published number is reproduced, by its own tolerance and the interval of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from genrep_dist.evaluation.intervals import bootstrap_interval

MIN_SEEDS = 5
"""With fewer seeds the interval is their range, from which nothing is concluded."""

Verdict = Literal["reproduced", "refuted", "undecided", "not run"]


@dataclass(frozen=True)
class Measurement:
    """A mean over ``num_seeds`` networks with its seed-clustered 95% interval; the interval is None with one seed."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True)
class PublishedNumber:
    """A number as published: ``value`` +- ``tolerance``, which covers the reading of a chart. ``what`` says it in words."""

    what: str
    value: float
    tolerance: float

    def verdict(self, ours: Measurement | None) -> Verdict:
        """reproduced: our whole interval lies within the tolerance; refuted: it has no common point with it; else undecided.

        Both need :data:`MIN_SEEDS` seeds. "not run" without a measurement.
        """
        if ours is None:
            return "not run"
        if ours.low is None or ours.high is None or ours.num_seeds < MIN_SEEDS:
            return "undecided"
        least, most = self.value - self.tolerance, self.value + self.tolerance
        if least <= ours.low and ours.high <= most:
            return "reproduced"
        return "refuted" if ours.high < least or most < ours.low else "undecided"


def measurement(per_seed: npt.NDArray[np.float64]) -> Measurement:
    """The measurement of one mean a network (S,)."""
    low, high = bootstrap_interval(per_seed)
    return Measurement(float(per_seed.mean()), low, high, len(per_seed))
