"""Synthetic deletions with the shape of real ones: networks differ, points of one network agree, methods rise with the fraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

FRACTIONS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.10)


@dataclass(frozen=True)
class Labels:
    name: str
    kernel: str = "ntk"
    checkpoint: str = "final"
    importance: str = "tracking"


SHOWN = (
    (Labels("ntk-final/tracking"), 2.3),
    (Labels("ntk-final/target", importance="target"), 2.05),
    (Labels("ntk-final/surrogate", importance="surrogate"), 1.7),
    (Labels("ntk-middle/tracking", checkpoint="middle"), 2.2),
    (Labels("ntk-initial/tracking", checkpoint="initial"), 1.2),
    (Labels("last-layer-final/tracking", kernel="last-layer"), 1.9),
    (Labels("tracincp", "ntk", "all", "target"), 2.4),
    (Labels("random", "none", "none", "random"), 0.03),
)
METHODS = tuple(labels for labels, _ in SHOWN)
STRENGTHS = tuple((labels.name, strength) for labels, strength in SHOWN)


def synthetic_deletion(
    *,
    num_seeds: int = 20,
    num_points: int = 10,
    strengths: Sequence[tuple[str, float]] = STRENGTHS,
    signs: Sequence[str] = ("negative",),
    fractions: Sequence[float] = FRACTIONS,
    spread: float = 0.5,
) -> pl.DataFrame:
    """A full design, in the order of the deletion table."""
    draw = np.random.default_rng(7)
    rows = []
    for seed in range(num_seeds):
        network = draw.normal()
        for number, point in enumerate(sorted(draw.choice(1000, num_points, replace=False).tolist())):
            original = 3 + draw.normal()
            for sign in signs:
                direction = 1 if sign == "negative" else -1
                for name, strength in strengths:
                    slope = (
                        strength * (1 + 0.25 * spread * network + 0.4 * spread * draw.normal()) / max(sum(fractions) / len(fractions), 1e-9)
                    )
                    for fraction in fractions:
                        noise = 0.0 if fraction == 0 else 0.3 * spread * draw.normal()
                        delta = direction * (slope * fraction * (1.3 - 3 * fraction) + noise)
                        rows.append((seed, name, point, sign, fraction, round(250 * fraction), original, original + delta, delta))
            assert number < num_points
    columns = ["seed", "method", "test_id", "sign", "fraction", "num_removed", "score_original", "score_retrained", "delta"]
    return pl.DataFrame(rows, schema=columns, orient="row").sort("seed", "method", "test_id", "sign", "fraction")
