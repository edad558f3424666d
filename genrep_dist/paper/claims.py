"""Claims that one method is at least as good as another, tested on measured areas under deletion curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from genrep_dist.errors import NotCommittedError, StoreError
from genrep_dist.evaluation.intervals import bootstrap_interval

MIN_SEEDS = 5

_POWER_FACTOR = (1.959964 + 0.841621) ** 2
"""Of a two-sided test at 5 % that finds a true difference in 80 % of all repetitions: squared sum of the normal quantiles."""

ClaimStatus = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """AUC-DEL_- of ``better`` is at least ``share`` times that of ``worse``; ``strict``: it is larger."""

    better: str
    worse: str
    share: float = 1.0
    strict: bool = False


@dataclass(frozen=True)
class ClaimResult:
    """AUC(better) - share AUC(worse), averaged over the same networks and test points, with its seed-clustered 95% interval.

    ``status``: confirmed if the interval lies above zero (at or above, for a claim that is not strict), refuted if it lies below (at or
    below, for a strict one), else undecided. With fewer than :data:`MIN_SEEDS` networks it is undecided: their interval is their range.
    ``seeds_to_decide``: networks with as many test points each whose 95% interval would exclude zero with probability 0.8, if the true
    difference and the spread between networks were the measured ones, (1.96 + 0.84)^2 s^2 / mean^2; None where there are fewer than
    :data:`MIN_SEEDS` networks or the mean is zero.
    """

    claim: Claim
    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_points: int
    status: ClaimStatus
    seeds_to_decide: int | None


def check_claim(points: pl.DataFrame, claim: Claim, *, seed: int = 0) -> ClaimResult:
    """Test a claim on ``points`` (method, seed, test_id, value: one row an area); ``seed`` starts the bootstrap.

    NotCommittedError if one of the two methods has no rows, StoreError if they were not measured on the same points.
    """
    sides = [points.filter(pl.col("method") == name).sort("seed", "test_id") for name in (claim.better, claim.worse)]
    for name, side in zip((claim.better, claim.worse), sides, strict=True):
        if not side.height:
            raise NotCommittedError(
                "a claim is about a method that was not measured", where="the points table", expected=name, got="no rows"
            )
    first, second = sides
    if not first.select("seed", "test_id").equals(second.select("seed", "test_id")):
        raise StoreError(
            "a paired difference needs the same seeds and test points on both sides",
            where=f"{claim.better} and {claim.worse}",
            got=f"{first.height} and {second.height} points",
        )
    difference = first["value"] - claim.share * second["value"]
    by_seed = pl.DataFrame({"seed": first["seed"], "difference": difference}).group_by("seed", maintain_order=True).mean()
    per_seed = by_seed["difference"].to_numpy().astype(np.float64)
    low, high = bootstrap_interval(per_seed, seed=seed)
    mean, num_seeds, needed = float(per_seed.mean()), len(per_seed), None
    if num_seeds >= MIN_SEEDS and mean != 0:
        needed = max(MIN_SEEDS, math.ceil(_POWER_FACTOR * float(per_seed.var(ddof=1)) / mean**2))
    return ClaimResult(claim, mean, low, high, num_seeds, first.height, _status(claim, low, high, num_seeds), needed)


def combined_status(statuses: Iterable[ClaimStatus]) -> ClaimStatus:
    """Of a claim about several comparisons: confirmed if all are, refuted if any is, else undecided."""
    found: Sequence[ClaimStatus] = list(statuses)
    if "refuted" in found:
        return "refuted"
    return "confirmed" if found and set(found) == {"confirmed"} else "undecided"


def _status(claim: Claim, low: float | None, high: float | None, num_seeds: int) -> ClaimStatus:
    if low is None or high is None or num_seeds < MIN_SEEDS:
        return "undecided"
    if low > 0 or (low == 0 and not claim.strict):
        return "confirmed"
    return "refuted" if high < 0 or (high == 0 and claim.strict) else "undecided"
