"""The summary as a table that can go into a paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

NOT_KNOWN = "–"
HEADINGS = {"negative": "AUC-DEL₋", "positive": "AUC-DEL₊"}
EXPLANATION = {
    "negative": "AUC-DEL₋: change of the prediction when a method's most negative training samples are removed and the model is "
    "retrained, averaged over the removed fractions; larger is better.",
    "positive": "AUC-DEL₊: the same when the most positive samples are removed; smaller (more negative) is better.",
}
INTERVALS = (
    "Intervals: 95%, bootstrap over seeds (test points of one seed share its network). "
    "±: the pooled half-width 1.96 s / √(seeds × points), which treats all points as independent."
)


@dataclass(frozen=True)
class Cell:
    """One method's area under one sign's curve, as text. ``interval`` and ``pooled`` are a dash where nothing is known."""

    mean: str
    interval: str
    pooled: str
    best: bool


@dataclass(frozen=True)
class Row:
    """One method's line; ``cells`` by sign, in the order of ``signs_of``."""

    method: str
    cells: tuple[Cell, ...]
    seeds: int
    points: int


def signs_of(summary: pl.DataFrame) -> tuple[str, ...]:
    """The signs that the summary has columns for, "negative" first."""
    return tuple(sign for sign in HEADINGS if f"auc_del_{sign}" in summary.columns)


def columns_of(sign: str) -> tuple[str, str, str, str]:
    """The summary's columns of one sign: mean, pooled half-width, lower and upper end of the clustered interval."""
    suffix = "" if sign == "negative" else "_positive"
    return f"auc_del_{sign}", f"ci95_pooled{suffix}", f"ci95_clustered_low{suffix}", f"ci95_clustered_high{suffix}"


def decimals_for(summary: pl.DataFrame) -> int:
    """Decimals that show three significant digits of the largest area; at least two, as in the paper, at most eight."""
    largest = max((abs(value) for sign in signs_of(summary) for value in summary[f"auc_del_{sign}"]), default=0.0)
    return 2 if largest == 0 else min(8, max(2, 2 - math.floor(math.log10(largest))))


def number(value: float | None, decimals: int, minus: str = "-") -> str:
    """``value`` with a fixed number of decimals, never "-0.00"; a dash for what is not known."""
    if value is None:
        return NOT_KNOWN
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", minus)


def table_rows(summary: pl.DataFrame, *, minus: str = "-") -> list[Row]:
    """The summary's rows in their order. The best of at least two methods is marked; equal ones share the mark."""
    decimals = decimals_for(summary)
    best = {
        sign: summary[f"auc_del_{sign}"].max() if sign == "negative" else summary[f"auc_del_{sign}"].min()
        for sign in signs_of(summary)
        if summary.height > 1
    }
    rows = []
    for record in summary.iter_rows(named=True):
        cells = []
        for sign in signs_of(summary):
            mean, pooled, low, high = (record[column] for column in columns_of(sign))
            ends = NOT_KNOWN if low is None else f"[{number(low, decimals, minus)}, {number(high, decimals, minus)}]"
            half = NOT_KNOWN if pooled is None else f"± {number(pooled, decimals, minus)}"
            cells.append(Cell(number(mean, decimals, minus), ends, half, best.get(sign) == mean))
        rows.append(Row(record["method"], tuple(cells), record["num_seeds"], record["num_points"]))
    return rows


def markdown_table(summary: pl.DataFrame) -> str:
    """The summary as a Markdown table, one row a method, best in bold, with a line below that says what the numbers are.

    Names are escaped, so that a pipe or a tag in one is shown and not obeyed. Ends with a newline.
    """
    signs = signs_of(summary)
    headings = ["method"]
    for sign in signs:
        headings += [HEADINGS[sign], "95% interval", "pooled"]
    headings.append("seeds × points")
    lines = [headings, [":--"] + ["--:"] * (len(headings) - 1)]
    for row in table_rows(summary):
        bold: Callable[[str], str] = "**{}**".format
        plain: Callable[[str], str] = "{}".format
        cells = [text for cell in row.cells for text in ((bold if cell.best else plain)(cell.mean), cell.interval, cell.pooled)]
        leading = bool(row.cells) and row.cells[0].best
        lines.append([(bold if leading else plain)(_escaped(row.method)), *cells, f"{row.seeds} × {row.points}"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = [EXPLANATION[sign] for sign in signs]
    return f"{table}\n\n{' '.join(notes)}\n{INTERVALS}\n"


def _escaped(text: str) -> str:
    """``text`` as one table cell that Markdown shows literally."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for special in "\\`*_[]|":
        text = text.replace(special, f"\\{special}")
    return text
