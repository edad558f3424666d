"""Deletion curves, and seeds as dots beside their mean. PNG for readers of files and MLflow, SVG to go into a page.

Drawn with matplotlib's objects alone: no pyplot, no state, equal data give equal bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style as mpl_style
import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from genrep_dist.report.styles import INK, QUIET, styles
from genrep_dist.report.tables import HEADINGS, columns_of

Format = Literal["png", "svg"]
PNG_DPI = 160
_FONT = "DejaVu Sans"  # ships with matplotlib: the figure looks the same everywhere

_LOOK: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": [_FONT],
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # "$" in a method's name starts no formula
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": QUIET,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "genrep",
    "svg.fonttype": "path",
}


def deletion_figure(
    curves: pl.DataFrame, *, methods: Sequence[str], sign: str = "negative", baseline: str = "random", image: Format = "png"
) -> bytes:
    """Mean DEL against percent removed, a line a method, with its clustered 95% band where there is one.

    ``curves`` as :func:`genrep_dist.evaluation.statistics.curves` returns it. ``methods`` fixes the styles; the legend is in the
    order in which the lines end, top first.
    """
    with _look():
        figure = Figure(figsize=(7.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=INK, linewidth=0.8)
        style_of = styles(methods, baseline=baseline)
        lines: list[tuple[float, str, Line2D]] = []
        for method in methods:
            rows = curves.filter((pl.col("method") == method) & (pl.col("sign") == sign)).sort("fraction")
            if not rows.height:
                continue
            percent, mean, style = 100 * rows["fraction"].to_numpy(), rows["mean"].to_numpy(), style_of[method]
            front = 1 if method == baseline else 2
            if not rows["low"].null_count():
                axes.fill_between(percent, rows["low"].to_numpy(), rows["high"].to_numpy(), color=style.colour, alpha=0.13, linewidth=0)
            (line,) = axes.plot(
                percent,
                mean,
                color=style.colour,
                linestyle=style.line,
                marker=style.marker,
                markersize=4.5,
                linewidth=1.6,
                zorder=front + 1,
                clip_on=False,
            )
            lines.append((float(mean[-1]), method, line))
        lines.sort(key=lambda entry: (-entry[0], entry[1]))
        axes.set_xlabel(f"most {sign} training samples removed (%)")
        axes.set_ylabel("change of the prediction (DEL)")
        axes.legend(
            [line for _, _, line in lines],
            [_drawable(method) for _, method, _ in lines],
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            handlelength=3.4,
            borderaxespad=0,
        )
        return _render(figure, image)


def seeds_figure(
    by_seed: pl.DataFrame,
    summary: pl.DataFrame,
    *,
    sign: str = "negative",
    baseline: str = "random",
    image: Format = "png",
) -> bytes:
    """Each network's AUC as a dot, and above the dots the mean of all with its clustered 95% interval; a row a method, best on top.

    ``by_seed`` as :func:`genrep_dist.evaluation.statistics.by_seed` returns it.
    """
    column, _, low_column, high_column = columns_of(sign)
    ordered = summary.sort([column, "method"], descending=[sign == "negative", False])
    style_of = styles(summary["method"].to_list(), baseline=baseline)
    with _look():
        figure = Figure(figsize=(7.4, 0.9 + 0.46 * ordered.height), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.8)
        for place, row in enumerate(ordered.iter_rows(named=True)):
            style = style_of[row["method"]]
            dots = by_seed.filter((pl.col("method") == row["method"]) & (pl.col("sign") == sign)).sort("seed")["auc"].to_numpy()
            axes.scatter(
                dots,
                place + 0.2 + _spread(len(dots)),
                s=20,
                marker=style.marker if style.marker != "x" else "o",
                color=style.colour,
                alpha=0.65,
                linewidth=0,
                clip_on=False,
            )
            mean, low, high = row[column], row[low_column], row[high_column]
            if low is not None:
                axes.plot([low, high], [place - 0.16] * 2, color=INK, linewidth=2, solid_capstyle="butt")
            axes.plot([mean], [place - 0.16], color=INK, marker="D", markersize=5, linestyle="none")
        axes.set_yticks(range(ordered.height), [_drawable(method) for method in ordered["method"]])
        axes.set_ylim(ordered.height - 0.5, -0.55)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{HEADINGS[sign]}\n(dots: networks; diamond and bar: mean, 95% interval)")
        return _render(figure, image)


def _spread(count: int) -> npt.NDArray[np.float64]:
    """Small fixed offsets that keep dots of near values apart: the golden ratio's fractions, within a tenth."""
    return np.asarray((np.arange(count) * 0.618034 % 1.0 - 0.5) * 0.2, dtype=np.float64)


def _drawable(text: str) -> str:
    """``text`` on one line, with a box for every character that the font lacks, and no longer than a label may be."""
    known = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    text = "".join(letter if ord(letter) in known else "\N{WHITE SQUARE}" for letter in " ".join(text.split()))
    text = text if len(text) <= 40 else text[:38] + "…"
    return f" {text}" if text.startswith("_") else text  # a label that begins with "_" would be left out of a legend


@contextmanager
def _look() -> Iterator[None]:
    # A user's own matplotlibrc must not change the figure.
    with mpl_style.context("default"), mpl.rc_context(_LOOK):
        yield


def _render(figure: Figure, image: Format) -> bytes:
    buffer = io.BytesIO()
    if image == "png":
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    else:
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
