from __future__ import annotations

import polars as pl
import pytest

from genrep_dist.evaluation.tables import table_specs
from genrep_dist.report.significance_marks import Marks


def marks(mean: float, p: float | None, other: str = "random", metric: str = "lds") -> Marks:
    row = (metric, "m", other, mean, mean - 1, mean + 1, None, None, p, p, 4, 2)
    return Marks(pl.DataFrame([row], schema=dict(table_specs()["comparisons"].columns), orient="row"), "random", "theirs")


@pytest.mark.parametrize(("p", "shown"), [(0.0009, "***"), (0.001, "**"), (0.009, "**"), (0.01, "*"), (0.049, "*"), (0.05, ""), (1.0, "")])
def test_stars_against_random(p: float, shown: str) -> None:
    assert marks(1.0, p).for_method("lds", "m", better=1) == shown
    assert marks(-1.0, p).for_method("lds", "m", better=-1) == shown
    assert marks(-1.0, p).for_method("lds", "m", better=1) == ("↓" if shown else "")


@pytest.mark.parametrize(("mean", "better", "shown"), [(1.0, 1, "†"), (-1.0, 1, "‡"), (-1.0, -1, "†"), (1.0, -1, "‡")])
def test_daggers_against_the_declared_baseline(mean: float, better: int, shown: str) -> None:
    assert marks(mean, 0.04, "theirs").for_method("lds", "m", better=better) == shown
    assert marks(mean, 0.05, "theirs").for_method("lds", "m", better=better) == ""


def test_what_was_not_tested_has_no_mark() -> None:
    assert marks(1.0, None).for_method("lds", "m", better=1) == ""
    assert marks(1.0, None).notes(["lds"], [""]) == ()
    assert marks(1.0, 0.001).for_method("lds", "another", better=1) == ""
    assert marks(1.0, 0.001).for_method("loo_correlation", "m", better=1) == ""


def test_the_corrected_p_value_counts() -> None:
    made = marks(1.0, 0.2)
    raw = Marks(made.comparisons.with_columns(p_value=pl.lit(0.001)), "random", None)
    assert raw.for_method("lds", "m", better=1) == ""


def test_exactly_the_marks_that_are_shown_are_defined() -> None:
    made = marks(1.0, 0.001)
    (note,) = made.notes(["lds"], ["**", "†"])
    assert "better than random: * p < 0.05, ** p < 0.01, *** p < 0.001" in note
    assert "† better than the baseline theirs" in note
    assert "‡" not in note
    assert "↓" not in note
    (note,) = made.notes(["lds"], ["↓‡"])
    assert "↓ worse than random" in note
    assert "‡ worse than the baseline theirs" in note
    assert "*" not in note


def test_that_nothing_is_marked_is_said() -> None:
    (note,) = marks(1.0, 0.3).notes(["lds"], ["", ""])
    assert note.startswith("No difference from random reaches p < 0.05")
    assert marks(1.0, 0.3).notes(["loo_correlation"], [""]) == ()
