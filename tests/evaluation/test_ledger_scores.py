from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.ledger_scores import ledger_scores
from genrep_dist.store.compaction import DUPLICATE_TOLERANCE

LEDGER = {f"model-{number}": np.random.default_rng(number).normal(size=6).tolist() for number in range(5)}


def ledger(rows: dict[str, list[float]], dtype: type[pl.DataType] = pl.Float64) -> pl.LazyFrame:
    schema: dict[str, Any] = {"key": pl.String, "outputs": pl.List(dtype)}
    return pl.LazyFrame({"key": list(rows), "outputs": list(rows.values())}, schema=schema)


def wanted(*pairs: tuple[str | None, int | None]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"key": pl.String, "output_position": pl.Int64}, orient="row")


def found(frame: pl.DataFrame) -> dict[tuple[str, int], float]:
    assert frame.schema == {"key": pl.String, "output_position": pl.Int64, "score": pl.Float64}
    answers = {(key, position): score for key, position, score in frame.rows()}
    assert len(answers) == frame.height
    return answers


@given(st.lists(st.tuples(st.sampled_from(sorted(LEDGER)), st.integers(0, 5))))
def test_every_wanted_number_comes_once(pairs: list[tuple[str, int]]) -> None:
    answers = found(ledger_scores(wanted(*pairs), ledger(LEDGER)))
    assert answers == {(key, position): LEDGER[key][position] for key, position in pairs}


def test_other_columns_and_other_models_are_ignored() -> None:
    rows = ledger({**LEDGER, "short": [math.nan]}).with_columns(seconds=pl.lit("any"))
    question = wanted(("model-1", 2)).with_columns(method=pl.lit("any"))
    assert found(ledger_scores(question, rows)) == {("model-1", 2): LEDGER["model-1"][2]}


def test_single_precision_is_read_as_it_is() -> None:
    answers = found(ledger_scores(wanted(("model-1", 2)), ledger(LEDGER, pl.Float32)))
    assert answers == {("model-1", 2): float(np.float32(LEDGER["model-1"][2]))}


def test_parts_are_read_like_one_table(tmp_path: Path) -> None:
    for number, part in enumerate(ledger(LEDGER).collect().iter_slices(2)):
        part.write_parquet(tmp_path / f"{number}.parquet")
    question = wanted(*((key, position) for key in LEDGER for position in range(6)))
    expected = {(key, position): value for key, values in LEDGER.items() for position, value in enumerate(values)}
    assert found(ledger_scores(question, pl.scan_parquet(tmp_path / "*.parquet"))) == expected


@given(st.permutations([0.0, 0.5, 1.0]))
def test_which_duplicate_counts_does_not_depend_on_their_order(shares: list[float]) -> None:
    near = [{"a": [1.0 + share * DUPLICATE_TOLERANCE]} for share in shares]
    rows = pl.concat([ledger(part) for part in near])
    assert found(ledger_scores(wanted(("a", 0)), rows)) == {("a", 0): 1.0}


@pytest.mark.parametrize("distance", [0.99, 1.01])
def test_duplicates_may_differ_by_rounding_only(distance: float) -> None:
    # Relative to the score: at 9, by ten tolerances.
    rows = pl.concat([ledger({"a": [9.0]}), ledger({"a": [9.0 - distance * 10 * DUPLICATE_TOLERANCE]})])
    if distance < 1:
        assert ledger_scores(wanted(("a", 0)), rows).height == 1
    else:
        with pytest.raises(CorruptError, match="disagree"):
            ledger_scores(wanted(("a", 0)), rows)


def test_a_duplicate_that_is_too_short_is_refused() -> None:
    rows = pl.concat([ledger({"a": [1.0, 2.0]}), ledger({"a": [1.0]})])
    assert ledger_scores(wanted(("a", 0)), rows).height == 1
    with pytest.raises(CorruptError, match="position 1 of key a"):
        ledger_scores(wanted(("a", 1)), rows)


@pytest.mark.parametrize(
    ("question", "kind", "says"),
    [
        (wanted(("model-1", 0), ("gone", 0), ("gone", 1), ("lost", 0)), NotCommittedError, "2 of 3 retrained models"),
        (wanted(("model-1", 6)), CorruptError, "position 6 of key model-1"),
        (wanted(("bad", 0)), NonFiniteError, "nan at output position 0 of key bad"),
        (wanted(("bad", 1)), NonFiniteError, "inf at output position 1 of key bad"),
        (wanted(("bad", 2), ("model-1", -1)), StoreError, "negative output position"),
        (wanted((None, 2)), StoreError, "nulls in key"),
        (wanted(("model-1", None)), StoreError, "nulls in output_position"),
    ],
)
def test_what_is_not_there_or_no_number_is_refused(question: pl.DataFrame, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        ledger_scores(question, ledger({**LEDGER, "bad": [math.nan, math.inf, 1.0]}))


@pytest.mark.parametrize("bad_first", [True, False])
def test_one_bad_duplicate_is_enough(bad_first: bool) -> None:
    parts = [ledger({"a": [math.nan]}), ledger({"a": [1.0]})]
    with pytest.raises(NonFiniteError, match="position 0 of key a"):
        ledger_scores(wanted(("a", 0)), pl.concat(parts if bad_first else parts[::-1]))


def test_an_empty_ledger_has_nothing() -> None:
    assert ledger_scores(wanted(), ledger({})).height == 0
    with pytest.raises(NotCommittedError, match="1 of 1"):
        ledger_scores(wanted(("a", 0)), ledger({}))
