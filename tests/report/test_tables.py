from __future__ import annotations

import re

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.evaluation.metrics.base import metric_info, metric_infos
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.evaluation.statistics import summarise, summary_schema
from genrep_dist.report import latex as latex_module
from genrep_dist.report.latex import latex
from genrep_dist.report.markdown import markdown
from genrep_dist.report.tables import FAMILIES, all_metrics, decimals_for, mean_ceiling, number, tables
from tests.evaluation.examples import METHODS, Labels, synthetic_deletion
from tests.report import synthetic


def made_summary(*areas: float, name: str = "m", low: float | None = None) -> pl.DataFrame:
    rows = [(f"{name}{n}", "k", "c", "i", area, low, low, low, 3, 2) for n, area in enumerate(areas)]
    return pl.DataFrame(rows, schema=summary_schema(), orient="row")


def markdown_table(summary: pl.DataFrame) -> str:
    return markdown(tables(summary, EvaluationTables()))


def cells_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]


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
    assert markdown_table(made_summary(0.1 + 0.2, 0.3)).count("**0.300**") == 2


def test_of_positive_removals_the_most_negative_is_best() -> None:
    deletion = synthetic_deletion(num_seeds=3, num_points=2, signs=("negative", "positive"))
    summary = summarise(deletion, METHODS)
    table = cells_of(markdown_table(summary))
    assert table[0].count("95% interval") == 2
    assert table[0][4] == "AUC-DEL₊"
    best = [row for row in table[2:] if row[4].startswith("**")]
    assert [row[0].strip("*") for row in best] == [summary.sort("auc_del_positive")["method"][0]]


def test_what_is_not_known_is_a_dash() -> None:
    (table,) = tables(summarise(synthetic_deletion(num_seeds=1, strengths=(("a", 1.0),)), [Labels("a")]), EvaluationTables())
    ((_, (row,)),) = table.blocks
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
    assert decimals_for([largest, -largest / 2]) == decimals


def test_numbers_have_no_negative_zero() -> None:
    assert number(-0.001, 2) == "0.00"
    assert number(-1.5, 2, "\N{MINUS SIGN}") == "\N{MINUS SIGN}1.50"
    assert number(None, 2) == "–"


def everything(num_seeds: int = 12, *, two_way: bool = True) -> tuple[pl.DataFrame, EvaluationTables]:
    deletion = synthetic_deletion(
        num_seeds=num_seeds, num_points=2, strengths=tuple(synthetic.STRENGTHS.items()), signs=("negative", "positive")
    )
    return summarise(deletion, synthetic.LABELS), synthetic.judged(num_seeds, two_way=two_way)


def test_every_metric_stands_in_one_family() -> None:
    assert sorted(name for names in FAMILIES.values() for name in names) == sorted(metric_infos())


def test_a_table_a_family_in_order_of_the_registry() -> None:
    summary, judged = everything()
    made = tables(summary, judged)
    assert [table.title for table in made] == list(FAMILIES)
    assert [metric.name for table in made for metric in table.metrics] == list(metric_infos())
    only_lds = EvaluationTables(metrics=judged.metrics.filter(pl.col("metric") == "lds"))
    assert [table.title for table in tables(summary, only_lds)] == ["Deletion", "Linear datamodeling"]


def test_each_metrics_better_end_is_best() -> None:
    summary, judged = everything()
    for table in tables(summary, judged):
        for place, metric in enumerate(table.metrics):
            means = {row.method: row.cells[place] for _, rows in table.blocks for row in rows}
            rows = judged.metrics.filter(pl.col("metric") == metric.name).sort("mean", descending=metric.better == "larger")
            assert [name for name, cell in means.items() if cell.best] == [rows["method"][0]]


def test_the_judged_numbers_stand_for_the_summarys() -> None:
    summary, judged = everything()
    assert all_metrics(summary, judged).equals(judged.metrics)
    plain = all_metrics(summary, EvaluationTables())
    assert plain["mean"].to_list() == [*summary["auc_del_negative"], *summary["auc_del_positive"]]
    assert plain.schema == judged.metrics.schema


def test_two_way_columns_where_the_design_is_crossed() -> None:
    summary, judged = everything()
    heads = [table.headings for table in tables(summary, judged)]
    assert [head.count("two-way") for head in heads] == [2, 1, 1, 2, 0]
    summary, judged = everything(two_way=False)
    assert not any("two-way" in table.headings for table in tables(summary, judged))
    assert "Two-way" not in markdown(tables(summary, judged))


def test_methods_without_a_metric_are_left_out() -> None:
    summary, judged = everything()
    found = {table.title: [row.method for _, rows in table.blocks for row in rows] for table in tables(summary, judged)}
    assert found["Mislabelled data"] == [name for name in synthetic.NAMES if name != "their-scores"]
    alone = tables(summary, judged, blocks={"Theirs": ("their-scores",), "Ours": ("random", "tracincp")})
    assert [title for title, _ in alone[-1].blocks] == ["Ours"]
    without = tables(summary, judged, blocks={"Theirs": ("their-scores",)})
    assert "Mislabelled data" not in [table.title for table in without]


def test_blocks_have_their_own_best_and_one_set_of_notes() -> None:
    summary, judged = everything()
    text = markdown(tables(summary, judged, blocks=synthetic.BLOCKS, baseline="influence-function"))
    deletion = text.split("## Linear datamodeling")[0]
    assert [line for line in deletion.splitlines() if line.startswith("### ")] == [f"### {title}" for title in synthetic.BLOCKS]
    assert deletion.count("Intervals: 95%") == 1
    (table, *_) = tables(summary, judged, blocks=synthetic.BLOCKS)
    assert [[row.method for row in rows if row.cells[0].best] for _, rows in table.blocks] == [
        ["ntk-final/tracking"],
        ["tracincp"],
        ["their-scores"],
    ]


def test_marks_are_shown_and_defined() -> None:
    summary, judged = everything()
    text = markdown(tables(summary, judged, baseline="influence-function"))
    assert r"**2.40**\*\*\*†" in text
    assert "0.03‡" in text
    for note in [line for line in text.splitlines() if line.startswith("Marks:")]:
        assert r"better than random: \* p &lt; 0.05" in note
    assert "†" not in markdown(tables(summary, judged))
    assert "Marks" not in markdown(tables(*everything(num_seeds=1)))


def test_the_noise_ceiling_is_the_last_row() -> None:
    summary, judged = everything()
    text = markdown(tables(summary, judged, blocks=synthetic.BLOCKS))
    lds = cells_of(text.split("## Linear datamodeling")[1].split("## Leave-one-out")[0])
    assert lds[-1][:2] == ["*noise ceiling*", "*0.750*"]
    assert len(lds[-1]) == len(lds[0])
    assert text.count("noise ceiling*") == 1
    assert "(known for 3 of 4 points)" in text
    assert "Noise ceiling of LOO correlation: not known" in text
    assert mean_ceiling(judged, "lds") == 0.75
    assert mean_ceiling(judged, "loo_correlation") is None


def test_order_of_rows_changes_nothing() -> None:
    summary, judged = everything()
    shuffled = EvaluationTables(
        **{
            name: getattr(judged, name).sample(fraction=1, shuffle=True, seed=1)
            for name in ("metrics", "comparisons", "ceilings", "ranks", "best")
        }
    )
    assert markdown(tables(summary, judged, baseline="influence-function")) == markdown(
        tables(summary, shuffled, baseline="influence-function")
    )


def test_latex_has_every_number_and_balanced_groups() -> None:
    summary, judged = everything()
    made = tables(summary, judged, blocks=synthetic.BLOCKS, baseline="influence-function", minus="\N{MINUS SIGN}")
    text = latex(made)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == len(FAMILIES)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert rf"\{rule}" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert r"\textbf{2.40}\textsuperscript{$*$$*$$*$$\dagger$}" in text
    assert text.isascii()
    for table, part in zip(made, text.split(r"\begin{table}")[1:], strict=True):
        for line in part.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert line.count("&") - line.count(r"\&") == len(table.headings) - 1


def test_latex_names_are_shown_and_not_obeyed() -> None:
    text = latex(tables(made_summary(1.0, name=r"50% \input{x} $a_b^c$ & # ~ -- [2]" + "\n"), EvaluationTables(), minus="\N{MINUS SIGN}"))
    assert r"50\% \textbackslash{}input\{x\} \$a\_b\textasciicircum{}c\$ \& \# \textasciitilde{} -{}- {[}2{]}" in text


@given(st.text())
def test_latex_text_has_no_live_special(text: str) -> None:
    # What escaping itself writes is taken out; then nothing that TeX would obey may be left.
    escaped = latex_module.escaped(text)
    for command in sorted(set(latex_module._ESCAPES.values()) | {"-{}-"}, key=len, reverse=True):
        escaped = escaped.replace(str(command), "")
    assert not set(escaped) & set("\\{}$&#_%^~")
