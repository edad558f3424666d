"""Figures with matplotlib: curves of methods, and the values of each network beside their mean. Those of the page are in ``charts.py``."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genrep_dist.evaluation.metrics.base import CurvePlot, metric_info
from genrep_dist.report.canvas import WIDTH, Format, drawable, figure_style, render
from genrep_dist.report.styles import INK, QUIET, styles
from genrep_dist.report.tables import RANDOM

MAX_MARKERS = 20
"""Curves with more points than this have no markers."""


def curve_figure(
    plot: CurvePlot, *, methods: Sequence[str], emphasised: Collection[str] | None = None, random: str = RANDOM, image: Format = "png"
) -> bytes:
    """The curves of ``plot`` as an image; the arguments are those of :func:`draw_curves`."""
    with figure_style():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        draw_curves(figure.add_subplot(), plot, methods=methods, emphasised=emphasised, random=random)
        return render(figure, image)


def draw_curves(
    axes: Axes, plot: CurvePlot, *, methods: Sequence[str], emphasised: Collection[str] | None = None, random: str = RANDOM
) -> None:
    """Draw the curves of ``plot``, a line a method, with its 95% band if it has one.

    ``methods`` fixes the styles. Methods that are not in ``emphasised`` (None: all are) are thin lines without bands. The legend is in
    the order in which the lines end, top first; with a diagonal, where all lines end at the same point, in the order of their areas.
    """
    if plot.reference == "zero":
        axes.axhline(0, color=INK, linewidth=0.8)
    else:
        axes.plot([0, 100], [0, 100], color=QUIET, linestyle=(0, (3, 2)), linewidth=1)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
    style_of = styles(methods, random=random)
    lines: list[tuple[float, str, Line2D]] = []
    for method in methods:
        rows = plot.frame.filter(pl.col("method") == method).sort("share")
        if not rows.height:
            continue
        strong = emphasised is None or method in emphasised
        percent, mean, style = 100 * rows["share"].to_numpy(), rows["mean"].to_numpy(), style_of[method]
        if strong and not rows["low"].null_count():
            axes.fill_between(percent, rows["low"].to_numpy(), rows["high"].to_numpy(), color=style.colour, alpha=0.13, linewidth=0)
        (line,) = axes.plot(
            percent,
            mean,
            color=style.colour,
            linestyle=style.line,
            marker=style.marker if strong and rows.height <= MAX_MARKERS else None,
            markersize=4.5,
            linewidth=1.6 if strong else 0.9,
            zorder=2 if method == random else 4 if strong else 3,
            clip_on=plot.reference == "diagonal",
        )
        lines.append((float(mean[-1] if plot.reference == "zero" else np.trapezoid(mean, percent)), method, line))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    _legend(axes, lines)


def metric_figure(
    metrics: pl.DataFrame,
    seeds: pl.DataFrame,
    *,
    metric: str,
    methods: Sequence[str],
    random: str = RANDOM,
    ceiling: float | None = None,
    image: Format = "png",
) -> bytes:
    """Each network's value as a dot, and below the dots their mean with its 95% intervals; a row a method, best on top.

    ``metrics`` is the metrics table: the thick bar is the clustered interval, the thin one the two-way interval, if there is one.
    ``seeds``: metric, method, seed, value. ``ceiling`` is drawn as a line.
    """
    info = metric_info(metric)
    rows = metrics.filter((pl.col("metric") == metric) & pl.col("method").is_in(list(methods)))
    ordered = rows.sort(["mean", "method"], descending=[info.better == "larger", False])
    style_of = styles(methods, random=random)
    with figure_style():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.4 * ordered.height), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(info.chance, color=INK, linewidth=0.8)
        for place, row in enumerate(ordered.iter_rows(named=True)):
            style = style_of[row["method"]]
            dots = seeds.filter((pl.col("metric") == metric) & (pl.col("method") == row["method"])).sort("seed")["value"].to_numpy()
            axes.scatter(
                dots,
                place - 0.16 + _spread(len(dots)),
                s=20,
                marker=style.marker if style.marker != "x" else "o",
                color=style.colour,
                alpha=0.65,
                linewidth=0,
                clip_on=False,
            )
            _interval(axes, row["ci95_two_way_low"], row["ci95_two_way_high"], place + 0.2, 0.8)
            _interval(axes, row["ci95_clustered_low"], row["ci95_clustered_high"], place + 0.2, 2.6)
            axes.plot([row["mean"]], [place + 0.2], color=INK, marker="D", markersize=4.5, linestyle="none")
        if ceiling is not None:
            axes.axvline(ceiling, color=INK, linewidth=1.2, linestyle=(0, (1.2, 1.2)))
            axes.annotate(
                "noise ceiling", (ceiling, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points", ha="center"
            )
        axes.set_yticks(range(ordered.height), [drawable(method) for method in ordered["method"]])
        axes.set_ylim(ordered.height - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{info.title} ({info.better} is better)")
        return render(figure, image)


def _interval(axes: Axes, low: float | None, high: float | None, height: float, width: float) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [height] * 2, color=INK, linewidth=width, solid_capstyle="butt")


def _legend(axes: Axes, lines: list[tuple[float, str, Line2D]]) -> None:
    """Names beside the axes, the line with the largest key first."""
    lines = sorted(lines, key=lambda entry: (-entry[0], entry[1]))
    axes.legend(
        [line for _, _, line in lines],
        [drawable(method) for _, method, _ in lines],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        handlelength=3.4,
        borderaxespad=0,
    )


def _spread(count: int) -> npt.NDArray[np.float64]:
    """Small fixed offsets that keep dots of similar values apart: fractions of multiples of the golden ratio, within a tenth."""
    return np.asarray((np.arange(count) * 0.618034 % 1.0 - 0.5) * 0.2, dtype=np.float64)
