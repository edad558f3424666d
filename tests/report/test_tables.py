from __future__ import annotations

import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.evaluation.metrics.base import metric_info, metric_infos, registered_metrics
from genrep_dist.evaluation.metrics.deletion import auc_points
from genrep_dist.evaluation.statistics import metrics_table
from genrep_dist.evaluation.tables import EvaluationTables, table_specs
from genrep_dist.report import latex as latex_module
from genrep_dist.report.latex import latex
from genrep_dist.report.markdown import markdown
from genrep_dist.report.tables import Table, decimals_for, mean_ceiling, number, result_tables, sorted_methods
from tests.evaluation.examples import METHODS, synthetic_deletion
from tests.report import synthetic

NAMES = [method.name for method in METHODS]
TITLES = [metric.title for metric in registered_metrics()]


def areas(*values: float, name: str = "m") -> EvaluationTables:
    """Methods m0, m1, ... with these AUC-DEL_-."""
    rows = [("auc_del_negative", f"{name}{n}", value, None, None, None, None, None, 3, 2) for n, value in enumerate(values)]
    return EvaluationTables(metrics=pl.DataFrame(rows, schema=dict(table_specs()["metrics"].columns), orient="row"))


def measured(deletion: pl.DataFrame, methods: list[str]) -> EvaluationTables:
    return EvaluationTables(metrics=metrics_table(auc_points(deletion), methods))


def markdown_table(tables: EvaluationTables) -> str:
    return markdown(result_tables(tables, list(dict.fromkeys(tables.metrics["method"]))))


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


def test_a_row_a_method_with_both_intervals() -> None:
    deletion = synthetic_deletion(num_seeds=6, num_points=3)
    tables = measured(deletion, NAMES)
    table = cells_of(markdown_table(tables))
    assert table[0] == ["method", "AUC-DEL₋", "95% interval", "pooled", "seeds × points"]
    assert len({len(row) for row in table}) == 1
    for row, record in zip(table[2:], tables.metrics.sort("mean", descending=True).iter_rows(named=True), strict=True):
        assert row[0].strip("*") == record["method"]
        assert float(row[1].strip("*")) == pytest.approx(record["mean"], abs=0.005)
        low, high = (float(end) for end in row[2].strip("[]").split(","))
        assert (low, high) == pytest.approx((record["ci95_clustered_low"], record["ci95_clustered_high"]), abs=0.005)
        assert float(row[3].removeprefix("± ")) == pytest.approx(record["ci95_pooled"], abs=0.005)
        assert row[4] == "6 × 3"


def test_rows_are_sorted_best_first_by_the_first_number() -> None:
    names = ["a", "b", "c", "d"]
    judged = synthetic.judged(metrics=("auc_del_negative", "brittleness_removed"), names=names).metrics
    larger = judged.with_columns(mean=pl.when(pl.col("method") == "c").then(9.0).otherwise("mean"))
    assert sorted_methods(larger, (metric_info("auc_del_negative"),), names) == ["c", "a", "b", "d"]
    assert sorted_methods(larger, (metric_info("brittleness_removed"),), names) == ["a", "b", "d", "c"]
    assert sorted_methods(larger.filter(pl.col("method") != "a"), (metric_info("auc_del_negative"),), names) == ["c", "b", "d", "a"]


def test_the_best_is_bold_and_only_the_best() -> None:
    assert [row[1] for row in cells_of(markdown_table(areas(1.0, 3.0, -2.0)))[2:]] == ["**3.00**", "1.00", "-2.00"]
    assert [row[0] for row in cells_of(markdown_table(areas(1.0, 3.0, -2.0)))[2:]] == ["**m1**", "m0", "m2"]
    assert "**" not in markdown_table(areas(1.0))
    assert markdown_table(areas(3.0, 3.0)).count("**3.00**") == 2
    assert markdown_table(areas(0.1 + 0.2, 0.3)).count("**0.300**") == 2


def test_of_positive_removals_the_most_negative_is_best() -> None:
    deletion = synthetic_deletion(num_seeds=3, num_points=2, signs=("negative", "positive"))
    tables = measured(deletion, NAMES)
    table = cells_of(markdown_table(tables))
    assert table[0].count("95% interval") == 2
    assert table[0][4] == "AUC-DEL₊"
    best = [row for row in table[2:] if row[4].startswith("**")]
    assert [row[0].strip("*") for row in best] == [tables.metrics.filter(metric="auc_del_positive").sort("mean")["method"][0]]


def test_what_is_not_known_is_a_dash() -> None:
    (table,) = result_tables(measured(synthetic_deletion(num_seeds=1, strengths=(("a", 1.0),)), ["a"]), ["a"])
    ((_, (row,)),) = table.blocks
    assert (row.cells[0].interval, row.cells[0].pooled) == ("–", "–")
    assert "nan" not in markdown_table(areas(1.0)).lower()
    assert "None" not in markdown_table(areas(1.0))


def test_names_cannot_break_the_table() -> None:
    hostile = "a|b *c* `d` <script>alert(1)</script>\nnext"
    table = markdown_table(areas(1.0, name=hostile))
    assert "<script>" not in table
    assert len([line for line in table.splitlines() if line.startswith("|")]) == 3
    assert r"a\|b \*c\* \`d\` &lt;script&gt;" in table


@pytest.mark.parametrize(("largest", "decimals"), [(3.5, 2), (350.0, 2), (0.35, 3), (0.012, 4), (1e-12, 8), (0.0, 2)])
def test_decimals_follow_the_scale(largest: float, decimals: int) -> None:
    assert decimals_for([largest, -largest / 2]) == decimals


def test_numbers_have_no_negative_zero() -> None:
    assert number(-0.001, 2) == "0.00"
    assert number(-1.5, 2, "\N{MINUS SIGN}") == "\N{MINUS SIGN}1.50"
    assert number(None, 2) == "–"


def made(tables: EvaluationTables, **options: Any) -> list[Table]:
    return result_tables(tables, synthetic.NAMES, **options)


def test_a_table_a_metric_in_order_of_the_registry() -> None:
    tables = synthetic.judged()
    found = made(tables)
    assert [table.title for table in found] == TITLES
    assert [info.name for table in found for info in table.numbers] == list(metric_infos())
    only_lds = EvaluationTables(metrics=tables.metrics.filter(pl.col("metric") == "lds"))
    assert [table.title for table in made(only_lds)] == ["Linear datamodeling"]


def test_each_metrics_better_end_is_best() -> None:
    tables = synthetic.judged()
    for table in made(tables):
        for place, info in enumerate(table.numbers):
            cells = {row.method: row.cells[place] for _, rows in table.blocks for row in rows}
            rows = tables.metrics.filter(pl.col("metric") == info.name).sort("mean", descending=info.better == "larger")
            assert [name for name, cell in cells.items() if cell.best] == [rows["method"][0]]


def test_two_way_columns_where_the_design_is_crossed() -> None:
    tables = synthetic.judged()
    heads = [table.headings for table in made(tables)]
    assert [head.count("two-way") for head in heads] == [2, 1, 1, 1, 2, 0]
    tables = synthetic.judged(two_way=False)
    assert not any("two-way" in table.headings for table in made(tables))
    assert "Two-way" not in markdown(made(tables))


def test_methods_without_a_metric_are_left_out() -> None:
    tables = synthetic.judged()
    found = {table.title: [row.method for _, rows in table.blocks for row in rows] for table in made(tables)}
    assert sorted(found["Mislabelled data"]) == sorted(name for name in synthetic.NAMES if name != "their-scores")
    alone = made(tables, blocks={"Theirs": ("their-scores",), "Ours": ("random", "tracincp")})
    assert [title for title, _ in alone[-1].blocks] == ["Ours"]
    without = made(tables, blocks={"Theirs": ("their-scores",)})
    assert "Mislabelled data" not in [table.title for table in without]


def test_blocks_have_their_own_best_and_one_set_of_notes() -> None:
    tables = synthetic.judged()
    text = markdown(made(tables, blocks=synthetic.BLOCKS, baseline="influence-function"))
    deletion = text.split("## Linear datamodeling")[0]
    assert [line for line in deletion.splitlines() if line.startswith("### ")] == [f"### {title}" for title in synthetic.BLOCKS]
    assert deletion.count("Intervals: 95%") == 1
    (table, *_) = made(tables, blocks=synthetic.BLOCKS)
    assert [[row.method for row in rows if row.cells[0].best] for _, rows in table.blocks] == [
        ["ntk-final/tracking"],
        ["tracincp"],
        ["their-scores"],
    ]


def test_marks_are_shown_and_defined() -> None:
    tables = synthetic.judged()
    text = markdown(made(tables, baseline="influence-function"))
    assert r"**2.40**\*\*\*†" in text
    assert "0.03‡" in text
    for note in [line for line in text.splitlines() if line.startswith("Marks:")]:
        assert r"better than random: \* p &lt; 0.05" in note
    assert "†" not in markdown(made(tables))
    assert "Marks" not in markdown(made(synthetic.judged(1)))


def test_the_noise_ceiling_is_the_last_row() -> None:
    tables = synthetic.judged()
    text = markdown(made(tables, blocks=synthetic.BLOCKS))
    lds = cells_of(text.split("## Linear datamodeling")[1].split("## Leave-one-out")[0])
    assert lds[-1][:2] == ["*noise ceiling*", "*0.750*"]
    assert len(lds[-1]) == len(lds[0])
    assert text.count("noise ceiling*") == 1
    assert "(known for 3 of 4 points)" in text
    assert "Noise ceiling of LOO correlation: not known" in text
    assert mean_ceiling(tables, "lds") == 0.75
    assert mean_ceiling(tables, "loo_correlation") is None


def test_order_of_rows_changes_nothing() -> None:
    tables = synthetic.judged()
    shuffled = EvaluationTables(
        **{name: tables[name].sample(fraction=1, shuffle=True, seed=1) for name in ("metrics", "comparisons", "ceilings", "ranks", "best")}
    )
    assert markdown(made(tables, baseline="influence-function")) == markdown(made(shuffled, baseline="influence-function"))


def test_latex_has_every_number_and_balanced_groups() -> None:
    tables = synthetic.judged()
    found = made(tables, blocks=synthetic.BLOCKS, baseline="influence-function", minus="\N{MINUS SIGN}")
    text = latex(found)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(TITLES)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert rf"\{rule}" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\textbf{2.40}\textsuperscript{$*$$*$$*$$\dagger$}" in text
    assert text.isascii()
    for table, part in zip(found, text.split(r"\begin{table}")[1:], strict=True):
        for line in part.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert line.count("&") - line.count(r"\&") == len(table.headings) - 1


def test_latex_names_are_shown_and_not_obeyed() -> None:
    tables = areas(1.0, name=r"50% \input{x} $a_b^c$ & # ~ -- [2]" + "\n")
    text = latex(result_tables(tables, list(tables.metrics["method"]), minus="\N{MINUS SIGN}"))
    assert r"50\% \textbackslash{}input\{x\} \$a\_b\textasciicircum{}c\$ \& \# \textasciitilde{} -{}- {[}2{]}" in text


@given(st.text())
def test_latex_text_has_no_live_special(text: str) -> None:
    # What escaping itself writes is taken out; then nothing that TeX would obey may be left.
    escaped = latex_module.escaped(text)
    for command in sorted(set(latex_module._ESCAPES.values()) | {"-{}-"}, key=len, reverse=True):
        escaped = escaped.replace(str(command), "")
    assert not set(escaped) & set("\\{}$&#_%^~")
