from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.errors import NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.metrics.base import POINTS_SCHEMA, metric_infos
from genrep_dist.evaluation.metrics.brittleness import brittleness_points, brittleness_table
from genrep_dist.evaluation.tables import table_specs

FRACTIONS = (0.0, 0.01, 0.05, 0.1)
Rows = list[dict[str, Any]]
Ledger = dict[str, list[float]]


def frame(ledger: Ledger) -> pl.LazyFrame:
    schema: dict[str, Any] = {"key": pl.String, "outputs": pl.List(pl.Float64)}
    return pl.LazyFrame({"key": list(ledger), "outputs": list(ledger.values())}, schema=schema)


def example(num_outputs: int, num_replicates: int = 1, draw_seed: int = 0) -> tuple[Rows, Ledger]:
    """Five test samples, three of them explained; whole-numbered outputs, so that logits tie and are zero now and then."""
    draw = np.random.default_rng(draw_seed)

    def model() -> list[float]:
        values: list[float] = np.rint(1.5 * draw.normal(size=5 * num_outputs)).tolist()
        return values

    requests, ledger = [], {}
    for seed in (4, 1):
        ledger[f"original-{seed}"] = model()
        for method in ("b", "a"):
            for test_row, sign in ((3, "positive"), (0, "negative"), (4, "positive")):
                for fraction in FRACTIONS:
                    # A hundredth of 20 samples rounds to none.
                    count = round(20 * fraction)
                    for replicate in range(num_replicates if count else 1):
                        key = f"{seed}/{method}/{test_row}/{fraction}/{replicate}" if count else f"original-{seed}"
                        ledger.setdefault(key, model())
                        row = {"seed": seed, "method": method, "test_id": 100 + test_row, "sign": sign, "fraction": fraction}
                        row |= {"replicate": replicate, "num_removed": count, "key": key}
                        # The explained class need not be the predicted one.
                        position = test_row * num_outputs + (seed + test_row) % num_outputs
                        requests.append(row | {"original_key": f"original-{seed}", "output_position": position})
    return requests, ledger


def by_loop(requests: Rows, ledger: Ledger, num_outputs: int) -> list[tuple[Any, ...]]:
    """Point by point, removal by removal from the smallest; stop at the first that flips."""

    def predicted(models: list[list[float]], test_row: int) -> int:
        start = test_row * num_outputs
        mean = [sum(model[start + c] for model in models) / len(models) for c in range(num_outputs)]
        return int(mean[0] > 0) if num_outputs == 1 else mean.index(max(mean))

    answers = []
    for point in sorted({(row["seed"], row["method"], row["test_id"]) for row in requests}):
        rows = [row for row in requests if (row["seed"], row["method"], row["test_id"]) == point]
        test_row = point[2] - 100
        answer: tuple[Any, ...] = (*point, None, None, False)
        for fraction in sorted({row["fraction"] for row in rows}):
            there = sorted((row for row in rows if row["fraction"] == fraction), key=lambda row: row["replicate"])
            before = predicted([ledger[there[0]["original_key"]]], test_row)
            after = predicted([ledger[row["key"]] for row in there], test_row)
            if there[0]["num_removed"] and before != after:
                answer = (*point, there[0]["num_removed"], fraction, True)
                break
        answers.append(answer)
    return answers


@given(st.integers(0, 200), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.randoms(use_true_random=False))
def test_equals_a_plain_loop_whatever_the_order_of_rows(draw_seed: int, num_outputs: int, num_replicates: int, random: Any) -> None:
    requests, ledger = example(num_outputs, num_replicates, draw_seed)
    expected = by_loop(requests, ledger, num_outputs)
    random.shuffle(requests)
    table = brittleness_table(pl.DataFrame(requests), frame(ledger), num_outputs)
    assert table.rows() == expected
    assert dict(table.schema) == dict(table_specs()["brittleness"].columns)


def single(outputs: list[list[float]], original: list[float], removed: tuple[int, ...] = (0, 1, 2, 3)) -> pl.DataFrame:
    """The table of one test point with C = len(original) whose removals are these models."""
    ledger = {"original": original, **{str(number): values for number, values in enumerate(outputs)}}
    row = {"seed": 0, "method": "a", "test_id": 7, "sign": "positive", "replicate": 0, "original_key": "original", "output_position": 0}
    requests = [row | {"fraction": number / 10, "num_removed": k, "key": str(number)} for number, k in enumerate(removed)]
    return brittleness_table(pl.DataFrame(requests), frame(ledger), len(original))


def test_the_smallest_removal_counts_even_where_a_larger_one_flips_back() -> None:
    assert single([[1.0], [0.5], [-0.1], [2.0]], [1.0]).row(0) == (0, "a", 7, 2, 0.2, True)


def test_of_two_shares_that_remove_as_many_the_smaller_counts() -> None:
    assert single([[1.0], [0.5], [-0.1], [-0.2]], [1.0], (0, 1, 2, 2)).row(0) == (0, "a", 7, 2, 0.2, True)


def test_removing_nothing_never_flips() -> None:
    # Even a model that was trained anew without any removal, and says otherwise.
    assert single([[-1.0], [1.0], [1.0], [1.0]], [1.0]).row(0) == (0, "a", 7, None, None, False)
    assert single([[-1.0], [1.0], [-1.0], [1.0]], [1.0]).row(0) == (0, "a", 7, 2, 0.2, True)


def test_a_logit_of_zero_is_the_class_below() -> None:
    assert single([[1.0], [0.0]], [1.0], (0, 1))["flipped"].to_list() == [True]
    assert single([[1.0], [0.0]], [-1.0], (0, 1))["flipped"].to_list() == [False]


def test_the_class_is_that_of_the_mean_of_the_replicates() -> None:
    requests, ledger = example(1, num_replicates=2)
    requests = [
        row for row in requests if row["fraction"] in {0.0, 0.1} and row["test_id"] == 103 and row["method"] == "a" and row["seed"] == 1
    ]
    ledger["original-1"][3] = 1.0
    keys = [row["key"] for row in requests if row["fraction"]]
    for other, flips in ((-2.0, False), (-4.0, True)):
        ledger[keys[0]][3], ledger[keys[1]][3] = 3.0, other
        assert brittleness_table(pl.DataFrame(requests), frame(ledger), 1)["flipped"].to_list() == [flips]


def test_points_of_both_metrics() -> None:
    requests, ledger = example(1)
    table = brittleness_table(pl.DataFrame(requests), frame(ledger), 1)
    points = brittleness_points(table, max(FRACTIONS))
    assert dict(points.schema) == POINTS_SCHEMA
    assert points.equals(points.sort(list(POINTS_SCHEMA)[:-1]))
    assert set(points["metric"]) == {"brittleness_flipped", "brittleness_removed"} <= set(metric_infos())
    values = {(metric, seed, method, test_id): value for metric, method, seed, test_id, value in points.rows()}
    for seed, method, test_id, _, fraction, flipped in table.rows():
        assert values["brittleness_flipped", seed, method, test_id] == float(flipped)
        assert values["brittleness_removed", seed, method, test_id] == (fraction if flipped else 0.1)
    assert len(values) == 2 * table.height
    assert set(table["flipped"]) == {True, False}


def test_nothing_asked_gives_empty_tables() -> None:
    requests, ledger = example(2)
    table = brittleness_table(pl.DataFrame(requests).clear(), frame(ledger), 2)
    assert table.equals(pl.DataFrame(schema=table_specs()["brittleness"].columns))
    assert brittleness_points(table, 0.1).equals(pl.DataFrame(schema=POINTS_SCHEMA))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [rows[0] | {"sign": "negative"}, *rows[1:]], r"one sign for each"),
        (lambda rows: rows[:-1], r"the fractions \[0.0, 0.01, 0.05, 0.1\]"),
        (lambda rows: [*rows[:-1], rows[-1] | {"fraction": 0.2}], "removals are not those of the others"),
        (lambda rows: [rows[0] | {"sign": "up"}, *rows[1:]], "unknown sign"),
        (lambda rows: [*rows, rows[0]], "requested twice"),
    ],
)
def test_malformed_requests_are_refused(change: Any, says: str) -> None:
    requests, ledger = example(2)
    with pytest.raises(StoreError, match=says):
        brittleness_table(pl.DataFrame(change(requests)), frame(ledger), 2)


def test_all_classes_of_a_model_are_needed() -> None:
    requests, ledger = example(3)
    key, position = requests[2]["key"], requests[2]["output_position"]
    other = position + 1 if position % 3 == 0 else position - 1
    ledger[key][other] = float("nan")
    with pytest.raises(NonFiniteError, match=f"position {other} of key {key}"):
        brittleness_table(pl.DataFrame(requests), frame(ledger), 3)
    del ledger[key]
    with pytest.raises(NotCommittedError, match=key):
        brittleness_table(pl.DataFrame(requests), frame(ledger), 3)
