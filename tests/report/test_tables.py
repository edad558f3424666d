from __future__ import annotations

import polars as pl
import pytest

from genrep_dist.evaluation.statistics import summarise, summary_schema
from genrep_dist.report.tables import decimals_for, markdown_table, number, table_rows
from tests.evaluation.examples import METHODS, Labels, synthetic_deletion


def made_summary(*areas: float, name: str = "m", low: float | None = None) -> pl.DataFrame:
    rows = [(f"{name}{n}", "k", "c", "i", area, low, low, low, 3, 2) for n, area in enumerate(areas)]
    return pl.DataFrame(rows, schema=summary_schema(), orient="row")


def cells_of(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_row_a_method_with_both_intervals() -> None:
    deletion = synthetic_deletion(num_seeds=6, num_points=3)
    summary = summarise(deletion, METHODS)
    table = cells_of(markdown_table(summary))
    assert table[0] == ["method", "AUC-DEL₋", "95% interval", "pooled", "seeds × points"]
    assert len({len(row) for row in table}) == 1
    for row, record in zip(table[2:], summary.iter_rows(named=True), strict=True):
        assert row[0].strip("*") == record["method"]
        assert float(row[1].strip("*")) == pytest.approx(record["auc_del_negative"], abs=0.005)
        low, high = (float(end) for end in row[2].strip("[]").split(","))
        assert (low, high) == pytest.approx((record["ci95_clustered_low"], record["ci95_clustered_high"]), abs=0.005)
        assert float(row[3].removeprefix("± ")) == pytest.approx(record["ci95_pooled"], abs=0.005)
        assert row[4] == "6 × 3"


def test_the_best_is_bold_and_only_the_best() -> None:
    assert [row[1] for row in cells_of(markdown_table(made_summary(1.0, 3.0, -2.0)))[2:]] == ["1.00", "**3.00**", "-2.00"]
    assert [row[0] for row in cells_of(markdown_table(made_summary(1.0, 3.0, -2.0)))[2:]] == ["m0", "**m1**", "m2"]
    assert "**" not in markdown_table(made_summary(1.0))
    assert markdown_table(made_summary(3.0, 3.0)).count("**3.00**") == 2


def test_of_positive_removals_the_most_negative_is_best() -> None:
    deletion = synthetic_deletion(num_seeds=3, num_points=2, signs=("negative", "positive"))
    summary = summarise(deletion, METHODS)
    table = cells_of(markdown_table(summary))
    assert table[0].count("95% interval") == 2
    assert table[0][4] == "AUC-DEL₊"
    best = [row for row in table[2:] if row[4].startswith("**")]
    assert [row[0].strip("*") for row in best] == [summary.sort("auc_del_positive")["method"][0]]


def test_what_is_not_known_is_a_dash() -> None:
    (row,) = table_rows(summarise(synthetic_deletion(num_seeds=1, strengths=(("a", 1.0),)), [Labels("a")]))
    assert (row.cells[0].interval, row.cells[0].pooled) == ("–", "–")
    assert "nan" not in markdown_table(made_summary(1.0)).lower()
    assert "None" not in markdown_table(made_summary(1.0))


def test_names_cannot_break_the_table() -> None:
    hostile = "a|b *c* `d` <script>alert(1)</script>\nnext"
    table = markdown_table(made_summary(1.0, name=hostile))
    assert "<script>" not in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 3
    assert r"a\|b \*c\* \`d\` &lt;script&gt;" in table


@pytest.mark.parametrize(("largest", "decimals"), [(3.5, 2), (350.0, 2), (0.35, 3), (0.012, 4), (1e-12, 8), (0.0, 2)])
def test_decimals_follow_the_scale(largest: float, decimals: int) -> None:
    assert decimals_for(made_summary(largest, -largest / 2)) == decimals


def test_numbers_have_no_negative_zero() -> None:
    assert number(-0.001, 2) == "0.00"
    assert number(-1.5, 2, "\N{MINUS SIGN}") == "\N{MINUS SIGN}1.50"
    assert number(None, 2) == "–"
