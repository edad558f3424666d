from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.metrics.deletion import Deletion
from genrep_dist.evaluation.removals import REMOVAL_COLUMNS, REMOVAL_REQUESTS, deletion_table, replicates_table
from genrep_dist.store import Store
from genrep_dist.store.tables import put_frame

DELETION = Deletion.tables["deletion"]
NUM_TEST, NUM_OUTPUTS = 7, 3


def ledger_frame(rows: dict[str, list[float]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"key": list(rows), "outputs": list(rows.values()), "seconds": [0.5] * len(rows)},
        schema={"key": pl.String, "outputs": pl.List(pl.Float64), "seconds": pl.Float64},
    )


def example(num_seeds: int = 2, num_replicates: int = 1) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Requests, and a ledger with their models; some methods request the same set."""
    draw = np.random.default_rng(0)
    requests, ledger = [], {}
    for seed in range(num_seeds):
        original = f"original-{seed}"
        ledger[original] = draw.normal(size=NUM_TEST * NUM_OUTPUTS).astype(np.float32).tolist()
        for method in ("b-method", "a-method"):
            for test_row in (5, 0, 3):
                for sign in ("positive", "negative"):
                    for fraction in (0.0, 0.1, 0.05):
                        # Small fractions of both methods name the same samples; another seed is another model.
                        name = f"{seed}/{method if fraction == 0.1 else 'shared'}/{test_row}/{sign}/{fraction}"
                        for replicate in range(num_replicates if fraction else 1):
                            key = original if fraction == 0 else f"{name}/{replicate}"
                            ledger.setdefault(key, draw.normal(size=NUM_TEST * NUM_OUTPUTS).astype(np.float32).tolist())
                            requests.append(
                                {
                                    "seed": seed,
                                    "method": method,
                                    "test_id": 100 + test_row,
                                    "output_position": test_row * NUM_OUTPUTS + seed,
                                    "sign": sign,
                                    "fraction": fraction,
                                    "replicate": replicate,
                                    "num_removed": round(fraction * 40),
                                    "key": key,
                                    "original_key": original,
                                }
                            )
    ledger["requested by nobody"] = [float("nan")] * 2
    return requests, ledger


def by_loop(requests: list[dict[str, Any]], ledger: dict[str, list[float]]) -> list[tuple[Any, ...]]:
    """Removals one after the other; the replicates of each are added up in their order."""
    answers: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    about = {}
    for row in requests:
        identity = tuple(row[name] for name in REMOVAL_COLUMNS)
        answers.setdefault(identity, []).append((row["replicate"], ledger[row["key"]][row["output_position"]]))
        about[identity] = (row["num_removed"], ledger[row["original_key"]][row["output_position"]])
    rows = []
    for identity, replicates in answers.items():
        num_removed, original = about[identity]
        total = 0.0
        for _, score in sorted(replicates):
            total += score
        retrained = total / len(replicates)
        rows.append((*identity, num_removed, original, retrained, retrained - original))
    return sorted(rows)


@pytest.mark.parametrize("num_replicates", [1, 2, 7, 40])
def test_equals_a_plain_loop(num_replicates: int) -> None:
    requests, ledger = example(num_replicates=num_replicates)
    table = deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())
    assert table.columns == list(DELETION.columns)
    assert table.rows() == by_loop(requests, ledger)
    assert (table.filter(pl.col("fraction") == 0)["delta"] == 0).all()


def test_the_spread_of_replicates_is_kept() -> None:
    requests, ledger = example(num_replicates=3)
    table = replicates_table(pl.DataFrame(requests).reverse(), ledger_frame(ledger).lazy())
    assert table.columns == [*REMOVAL_COLUMNS, "replicate", "num_removed", "score_retrained", "delta"]
    expected = []
    for row in requests:
        score, original = (ledger[row[name]][row["output_position"]] for name in ("key", "original_key"))
        expected.append((*(row[name] for name in (*REMOVAL_COLUMNS, "replicate", "num_removed")), score, score - original))
    assert table.rows() == sorted(expected)
    mean = table.group_by(REMOVAL_COLUMNS).agg(pl.col("delta").mean()).sort(REMOVAL_COLUMNS)["delta"]
    whole = deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())["delta"]
    np.testing.assert_allclose(whole, mean, rtol=0, atol=1e-12)


def test_nothing_removed_is_one_model_without_a_spread() -> None:
    requests, ledger = example(num_replicates=3)
    nothing = replicates_table(pl.DataFrame(requests), ledger_frame(ledger).lazy()).filter(pl.col("num_removed") == 0)
    assert nothing.height == 2 * 2 * 3 * 2
    assert nothing["replicate"].unique().to_list() == [0]
    assert nothing["delta"].unique().to_list() == [0]


def test_reads_the_ledger_lazily_from_parquet_parts(tmp_path: Path) -> None:
    requests, ledger = example()
    frame = ledger_frame(ledger)
    for number, part in enumerate(frame.iter_slices(5)):
        part.write_parquet(tmp_path / f"part-{number}.parquet")
    table = deletion_table(pl.DataFrame(requests), pl.scan_parquet(tmp_path / "*.parquet"))
    assert table.equals(deletion_table(pl.DataFrame(requests), frame.lazy()))


def test_a_missing_key_is_an_error_that_counts() -> None:
    requests, ledger = example()
    for key in [key for key in ledger if key.startswith("1/shared")]:
        del ledger[key]
    with pytest.raises(NotCommittedError, match=r"6 of \d+ retrained models[\s\S]*1/shared/0/negative/0.05/0 and 5 more"):
        deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())


def test_a_missing_original_is_an_error() -> None:
    requests, ledger = example()
    requests = [row for row in requests if row["fraction"] > 0]
    del ledger["original-1"]
    with pytest.raises(NotCommittedError, match="original-1"):
        deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())


def test_duplicated_rows_are_harmless() -> None:
    requests, ledger = example()
    once = ledger_frame(ledger)
    twice = pl.concat([once, once.head(9), once.tail(4)])
    assert deletion_table(pl.DataFrame(requests), twice.lazy()).equals(deletion_table(pl.DataFrame(requests), once.lazy()))


def test_rounding_between_duplicates_does_not_depend_on_their_order() -> None:
    requests, ledger = example()
    once = ledger_frame(ledger)
    other = ledger_frame({key: [value + 1e-5 for value in values] for key, values in ledger.items()})
    first = deletion_table(pl.DataFrame(requests), pl.concat([once, other]).lazy())
    assert first.equals(deletion_table(pl.DataFrame(requests), pl.concat([other, once]).lazy()))


def test_contradicting_duplicates_are_refused() -> None:
    requests, ledger = example()
    key = requests[1]["key"]
    foreign = ledger_frame({key: [value + 0.1 for value in ledger[key]]})
    with pytest.raises(CorruptError, match=r"disagree[\s\S]*" + key):
        deletion_table(pl.DataFrame(requests), pl.concat([ledger_frame(ledger), foreign]).lazy())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_refused(value: float) -> None:
    requests, ledger = example()
    ledger[requests[1]["key"]][requests[1]["output_position"]] = value
    with pytest.raises(NonFiniteError, match=f"position {requests[1]['output_position']} of key {requests[1]['key']}"):
        deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())


def test_a_model_with_too_few_outputs_is_refused() -> None:
    requests, ledger = example()
    ledger[requests[1]["key"]] = [1.0]
    with pytest.raises(CorruptError, match="no output"):
        deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [{**row, "sign": "sideways"} for row in rows], "sideways"),
        (lambda rows: [{**row, "output_position": -1} for row in rows], "negative output position"),
        (lambda rows: [{**row, "key": None} for row in rows[:2]] + rows[2:], "nulls in key"),
        (lambda rows: rows + rows[:1], "requested twice"),
        (lambda rows: [{**row, "replicate": row["replicate"] + 1} for row in rows], "replicates are missing"),
        (lambda rows: [row for row in rows if row["replicate"] != 1], "replicates are missing"),
        (lambda rows: [{**row, "replicate": row["replicate"] or -(row["num_removed"] > 0)} for row in rows], "replicates are missing"),
        (lambda rows: rows[:3] + rows[4:], r"differ in their replicates[\s\S]*3 replicates of each"),
        (lambda rows: [*rows, {**rows[0], "replicate": 1, "key": "x"}], r"differ in their replicates[\s\S]*'fraction': 0.0"),
        (lambda rows: [*rows[:3], {**rows[3], "key": rows[2]["key"]}, *rows[4:]], "are one model"),
        (lambda rows: [*rows[:3], {**rows[3], "num_removed": 39}, *rows[4:]], "replicates of one removal disagree"),
        (lambda rows: [*rows[:3], {**rows[3], "original_key": "original-1"}, *rows[4:]], "replicates of one removal disagree"),
        (lambda rows: [*rows[:3], {**rows[3], "output_position": 2}, *rows[4:]], "replicates of one removal disagree"),
        (lambda rows: [{name: value for name, value in row.items() if name != "fraction"} for row in rows], "no fraction"),
        (lambda rows: [{**row, "seed": "first"} for row in rows], "wrong type"),
    ],
)
def test_malformed_requests_are_refused(change: Any, says: str) -> None:
    requests, ledger = example(num_replicates=3)
    with pytest.raises(StoreError, match=says):
        deletion_table(pl.DataFrame(change(requests)), ledger_frame(ledger).lazy())


def test_no_requests_give_an_empty_table() -> None:
    requests, ledger = example()
    nothing = pl.DataFrame(requests).clear()
    table = deletion_table(nothing, ledger_frame(ledger).lazy())
    assert table.height == 0
    assert replicates_table(pl.DataFrame(schema=REMOVAL_REQUESTS), ledger_frame(ledger).lazy()).height == 0


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_row_order_never_matters(random: Any) -> None:
    requests, ledger = example(num_replicates=3)
    table = deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())
    keys = list(ledger)
    random.shuffle(requests)
    random.shuffle(keys)
    shuffled = deletion_table(pl.DataFrame(requests), ledger_frame({key: ledger[key] for key in keys}).lazy())
    assert shuffled.equals(table)
    assert parquet_bytes(shuffled) == parquet_bytes(table)


def parquet_bytes(table: pl.DataFrame) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        objects = Store(folder).objects
        put_frame(objects, "deletion.parquet", table, table="deletion", version=DELETION.version, nullable=DELETION.nullable)
        return objects.get("deletion.parquet")


def test_the_published_file_carries_its_schema_and_version() -> None:
    requests, ledger = example()
    table = deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())
    found = pq.read_table(io.BytesIO(parquet_bytes(table)))
    found.validate(full=True)
    assert found.schema.metadata == {b"genrep.table": b"deletion", b"genrep.version": b"1"}
    types = {"seed": "int64", "method": "string", "test_id": "int64", "sign": "string", "num_removed": "int64"}
    assert {field.name: str(field.type) for field in found.schema} == {name: types.get(name, "double") for name in table.columns}
    assert not any(field.nullable for field in found.schema)
    assert found.to_pylist() == table.to_dicts()


def test_a_null_is_not_written_as_a_deletion() -> None:
    requests, ledger = example()
    table = deletion_table(pl.DataFrame(requests), ledger_frame(ledger).lazy())
    with pytest.raises(CorruptError, match="not a table deletion"):
        parquet_bytes(table.with_columns(pl.lit(None, pl.Float64).alias("delta")))
