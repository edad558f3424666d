"""Table 1 as a figure: our areas with their intervals beside the paper's, a panel a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from genrep_dist.paper.published import BLOCKS
from genrep_dist.paper.table1 import CellComparison, DataColumn, compared_cell, other_methods
from genrep_dist.report.canvas import Format, drawable, figure_style, render
from genrep_dist.report.styles import COLOURS, INK, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS, _PANEL = 2.4, 1.75  # inches


def table1_figure(columns: Sequence[DataColumn], image: Format = "png") -> bytes:
    """All methods of all data sets: a dot and a bar are our mean and its 95% interval, a square and a thin bar the paper's.

    Methods are in the order of our areas, best on top: of their mean place over the data sets that measured them.
    """
    cells = {column.name: {method: compared_cell(column, method) for method in _methods(columns)} for column in columns}
    methods = _by_mean_place(list(cells.values()))
    with figure_style():
        figure = Figure(figsize=(_LABELS + _PANEL * len(columns), 1.0 + 0.27 * len(methods)), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            _draw(axes, [cells[column.name][method] for method in methods])
            axes.set_title(drawable(column.title), fontsize=9)
        panels[0].set_yticks(range(len(methods)), [drawable(method) for method in methods])
        panels[0].set_ylim(len(methods) - 0.5, -0.5)
        figure.supxlabel("AUC-DEL₋ in logits (larger is better)", fontsize=9)
        figure.legend(
            [Line2D([], [], **_mark(theirs=False)), Line2D([], [], **_mark(theirs=True))],
            ["ours", "the paper's"],
            loc="outside upper right",
            ncols=2,
        )
        return render(figure, image)


def _methods(columns: Sequence[DataColumn]) -> list[str]:
    """The paper's methods, then others, that at least one data set measured."""
    measured = {method for column in columns for method in column.points["method"].unique()}
    of_the_paper = (method for block in BLOCKS.values() for method in block)
    return [method for method in dict.fromkeys([*of_the_paper, *other_methods(columns)]) if method in measured]


def _by_mean_place(columns: Sequence[dict[str, CellComparison]]) -> list[str]:
    places: dict[str, list[float]] = {}
    for cells in columns:
        ours = {method: cell.ours[0] for method, cell in cells.items() if cell.ours is not None}
        for place, method in enumerate(sorted(ours, key=lambda method: -ours[method])):
            places.setdefault(method, []).append(place / len(ours))
    return sorted(places, key=lambda method: sum(places[method]) / len(places[method]))


def _draw(axes: Axes, cells: Sequence[CellComparison]) -> None:
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, cell in enumerate(cells):
        if cell.paper is not None:
            mean, half = cell.paper
            _bar(axes, mean, mean - half, mean + half, place + 0.18, theirs=True)
        if cell.ours is not None:
            _bar(axes, *cell.ours, place - 0.12, theirs=False)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _bar(axes: Axes, mean: float, low: float | None, high: float | None, height: float, *, theirs: bool) -> None:
    if low is not None and high is not None:
        axes.plot([low, high], [height] * 2, color=QUIET if theirs else INK, linewidth=0.9 if theirs else 1.8, solid_capstyle="butt")
    axes.plot([mean], [height], **_mark(theirs=theirs))


def _mark(*, theirs: bool) -> dict[str, Any]:
    if theirs:
        return {"color": QUIET, "marker": "s", "markersize": 4, "markerfacecolor": "white", "linestyle": "none"}
    return {"color": COLOURS[0], "marker": "o", "markersize": 5, "linestyle": "none", "zorder": 3}
