"""Claims that one method is at least as good as another, put to the test on measured areas under deletion curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from genrep_dist.errors import NotCommittedError, StoreError
from genrep_dist.evaluation.intervals import bootstrap_interval

MIN_SEEDS = 5

Verdict = Literal["confirmed", "refuted", "undecided"]


@dataclass(frozen=True)
class Claim:
    """AUC-DEL_- of ``better`` is at least ``share`` of that of ``worse`` (1: it is no smaller); ``strict``: it is larger."""

    better: str
    worse: str
    share: float = 1.0
    strict: bool = False


@dataclass(frozen=True)
class Finding:
    """AUC(better) - share AUC(worse), averaged over the same networks and test points, with its seed-clustered 95% interval.

    ``verdict``: confirmed where the interval lies above zero (at or above, for a claim that is not strict), refuted where it lies below
    (at or below, for a strict one), else undecided. Fewer than :data:`MIN_SEEDS` networks decide nothing: their interval is their range.
    """

    claim: Claim
    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_points: int
    verdict: Verdict


def examine(points: pl.DataFrame, claim: Claim, *, seed: int = 0) -> Finding:
    """What ``points`` (method, seed, test_id, value: one row an area) say of a claim; ``seed`` starts the bootstrap.

    NotCommittedError when one of the two methods has no rows, StoreError when they were not measured on the same points.
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
    return Finding(claim, float(per_seed.mean()), low, high, len(per_seed), first.height, _verdict(claim, low, high, len(per_seed)))


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of a claim that is about several comparisons: confirmed where all are, refuted where one is, else undecided."""
    found: Sequence[Verdict] = list(verdicts)
    if "refuted" in found:
        return "refuted"
    return "confirmed" if found and set(found) == {"confirmed"} else "undecided"


def _verdict(claim: Claim, low: float | None, high: float | None, num_seeds: int) -> Verdict:
    if low is None or high is None or num_seeds < MIN_SEEDS:
        return "undecided"
    if low > 0 or (low == 0 and not claim.strict):
        return "confirmed"
    return "refuted" if high < 0 or (high == 0 and claim.strict) else "undecided"
