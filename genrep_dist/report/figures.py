"""Curves of methods, and seeds as dots beside their mean. PNG for readers of files and MLflow, SVG to go into a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genrep_dist.evaluation.metrics import METRICS
from genrep_dist.report.canvas import WIDTH, Format, drawable, look, render
from genrep_dist.report.styles import INK, QUIET, styles
from genrep_dist.report.tables import RANDOM

CHANCE = {"mislabel_auroc": 0.5, "mislabel_inspection_area": 0.5}
"""What a metric is by chance, where that is not zero."""


def deletion_figure(
    curves: pl.DataFrame, *, methods: Sequence[str], sign: str = "negative", baseline: str = RANDOM, image: Format = "png"
) -> bytes:
    """Mean DEL against percent removed, a line a method, with its clustered 95% band where there is one.

    ``curves`` as :func:`genrep_dist.evaluation.statistics.curves` returns it. ``methods`` fixes the styles; the legend is in the
    order in which the lines end, top first.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
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
        axes.set_xlabel(f"most {sign} training samples removed (%)")
        axes.set_ylabel("change of the prediction (DEL)")
        _legend(axes, lines)
        return render(figure, image)


def inspection_figure(inspection: pl.DataFrame, *, methods: Sequence[str], baseline: str = RANDOM, image: Format = "png") -> bytes:
    """Share of the flipped labels found against the share of the training set looked at, a line a method; the diagonal is chance.

    ``inspection`` as in :data:`genrep_dist.evaluation.results.SCHEMAS`. The legend is in the order of the mean found share.
    """
    with look():
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 100], [0, 100], color=QUIET, linestyle=(0, (3, 2)), linewidth=1)
        style_of = styles(methods, baseline=baseline)
        lines: list[tuple[float, str, Line2D]] = []
        for method in methods:
            rows = inspection.filter(pl.col("method") == method).sort("inspected")
            if rows.height:
                inspected, found, style = 100 * rows["inspected"].to_numpy(), 100 * rows["found"].to_numpy(), style_of[method]
                (line,) = axes.plot(inspected, found, color=style.colour, linestyle=style.line, linewidth=1.6)
                lines.append((float(np.trapezoid(found, inspected)), method, line))
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.set_xlabel("training samples looked at, largest self-influence first (%)")
        axes.set_ylabel("flipped labels found (%)")
        _legend(axes, lines)
        return render(figure, image)


def metric_figure(
    metrics: pl.DataFrame,
    seeds: pl.DataFrame,
    *,
    metric: str,
    methods: Sequence[str],
    baseline: str = RANDOM,
    ceiling: float | None = None,
    image: Format = "png",
) -> bytes:
    """Each network's value as a dot, and below the dots the mean of all with its 95% intervals; a row a method, best on top.

    ``metrics`` as in :data:`genrep_dist.evaluation.results.SCHEMAS`: the thick bar is its clustered interval, the thin one the
    two-way one, where there is one. ``seeds``: method, seed, value. ``ceiling`` is drawn as a line of its own.
    """
    rows = metrics.filter((pl.col("metric") == metric) & pl.col("method").is_in(list(methods)))
    ordered = rows.sort(["mean", "method"], descending=[METRICS[metric].better == "larger", False])
    style_of = styles(methods, baseline=baseline)
    with look():
        figure = Figure(figsize=(WIDTH, 0.9 + 0.4 * ordered.height), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(CHANCE.get(metric, 0), color=INK, linewidth=0.8)
        for place, row in enumerate(ordered.iter_rows(named=True)):
            style = style_of[row["method"]]
            dots = seeds.filter(pl.col("method") == row["method"]).sort("seed")["value"].to_numpy()
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
        axes.set_xlabel(f"{METRICS[metric].title} ({METRICS[metric].better} is better)")
        return render(figure, image)


def _interval(axes: Axes, low: float | None, high: float | None, height: float, width: float) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [height] * 2, color=INK, linewidth=width, solid_capstyle="butt")


def _legend(axes: Axes, lines: list[tuple[float, str, Line2D]]) -> None:
    """Names beside the axes, the line with the largest number first."""
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
    """Small fixed offsets that keep dots of near values apart: the golden ratio's fractions, within a tenth."""
    return np.asarray((np.arange(count) * 0.618034 % 1.0 - 0.5) * 0.2, dtype=np.float64)
