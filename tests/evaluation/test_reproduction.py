"""Verdicts on published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from genrep_dist.evaluation.reproduction import Measurement, PublishedNumber, Verdict, measurement

PUBLISHED = PublishedNumber("LDS of a method", 0.80, 0.05)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "expected"),
    [
        (0.76, 0.84, 5, "reproduced"),
        (0.75, 0.85, 50, "reproduced"),
        (0.74, 0.84, 50, "undecided"),
        (0.60, 0.95, 50, "undecided"),
        (0.86, 0.90, 5, "refuted"),
        (0.10, 0.7499, 5, "refuted"),
        (0.76, 0.84, 4, "undecided"),
        (0.10, 0.20, 2, "undecided"),
        (None, None, 1, "undecided"),
    ],
)
def test_the_verdict_follows_from_interval_and_tolerance(low: float | None, high: float | None, seeds: int, expected: Verdict) -> None:
    assert PUBLISHED.verdict(Measurement(0.8, low, high, seeds)) == expected


def test_what_was_not_measured_has_no_verdict() -> None:
    assert PUBLISHED.verdict(None) == "not run"


def test_one_mean_a_network() -> None:
    found = measurement(np.array([0.78, 0.80, 0.79, 0.81, 0.82]))
    assert found.mean == pytest.approx(0.80)
    assert found.low is not None
    assert found.high is not None
    assert 0.78 <= found.low < 0.80 < found.high <= 0.82
    assert PUBLISHED.verdict(found) == "reproduced"
    alone = measurement(np.array([0.8]))
    assert (alone.low, PUBLISHED.verdict(alone)) == (None, "undecided")
