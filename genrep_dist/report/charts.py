"""The figures of the page: SVG elements with a legend whose entries switch the methods on and off. The page's script adds the rest."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from genrep_dist.evaluation.metrics.base import CurvePlot, metric_info
from genrep_dist.report.styles import Style, styles
from genrep_dist.report.tables import MINUS

MAX_NAME = 40
"""Characters of a method's name in a figure."""
MAX_DOTS = 20
"""Curves with more points than this have no dots."""
LABELS = 250
"""Width of the names beside the lanes of a broad figure."""


@dataclass(frozen=True)
class Frame:
    """The size of a figure and the margins of its axes, in the units of its view box; ``form`` is its CSS class."""

    form: str
    width: int
    height: int
    left: int = 62
    right: int = 14
    top: int = 12
    bottom: int = 46


FRAMES = (Frame("broad", 1040, 430), Frame("slim", 360, 320, left=48, right=8))
"""The page shows one of them, by the width of the window: text in a figure is readable at both."""


@dataclass(frozen=True)
class Scale:
    """Maps [``low``, ``high``] to [``start``, ``stop``]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 2)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Places and texts of at most ``count`` + 1 ticks inside the range."""
        values: npt.NDArray[np.float64] = np.asarray(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high))
        slack = 1e-9 * (self.high - self.low)
        return [(self(float(v)), number_text(float(v))) for v in values if self.low - slack <= v <= self.high + slack]


def number_text(value: float) -> str:
    """A short number with a minus sign; zero for what only rounding keeps from it."""
    return f"{0.0 if abs(value) < 1e-12 else value:.4g}".replace("-", MINUS)


def curve_chart(plot: CurvePlot, *, methods: Sequence[str], emphasised: Collection[str], random: str) -> Markup:
    """The curves of ``plot`` as HTML. Those of ``emphasised`` are thick and have their 95% bands; the others are thin lines.

    ``methods`` fixes the styles. The legend is in the order in which the curves end, top first; with a diagonal, where all end at the
    same point, in the order of their areas.
    """
    style_of = styles(methods, random=random)
    curves = {name: plot.frame.filter(pl.col("method") == name).sort("share") for name in methods}
    curves = {name: rows for name, rows in curves.items() if rows.height}
    if not curves:
        return Markup("")

    def end(name: str) -> float:
        mean = curves[name]["mean"].to_numpy()
        return float(mean[-1] if plot.reference == "zero" else np.trapezoid(mean, curves[name]["share"].to_numpy()))

    number = {name: place for place, name in enumerate(curves)}
    strong = [name for name in curves if name in emphasised or len(curves) <= 3]
    # What is drawn later covers what is drawn earlier.
    drawn = [*(name for name in curves if name not in strong), *sorted(strong, key=lambda name: name != random)]
    pictures = Markup("").join(_curves(plot, frame, curves, drawn, strong, style_of, number) for frame in FRAMES)
    legend = Markup("").join(
        _legend_entry(number[name], name, style_of[name], strong=name in strong)
        for name in sorted(curves, key=lambda name: (-end(name), name))
    )
    return Markup('<div class="chart">{}<ul class="legend">{}</ul></div>').format(pictures, legend)


def _curves(
    plot: CurvePlot,
    frame: Frame,
    curves: dict[str, pl.DataFrame],
    drawn: Sequence[str],
    strong: Collection[str],
    style_of: dict[str, Style],
    number: dict[str, int],
) -> Markup:
    shares = [float(share) for rows in curves.values() for share in rows["share"]]
    heights = [float(value) for rows in curves.values() for value in rows["mean"]]
    for name in strong:
        heights += [float(value) for end in ("low", "high") for value in curves[name][end].drop_nulls()]
    low, high = (0.0, 100.0) if plot.reference == "diagonal" else (min(0.0, *heights), max(0.0, *heights))
    room = 0.04 * (high - low) or 1.0
    x = Scale(100 * min(shares), max(100 * max(shares), 100 * min(shares) + 1e-9), frame.left, frame.width - frame.right)
    y = Scale(low - room, high + room, frame.height - frame.bottom, frame.top)
    parts = [_axes(frame, x, y, plot.x_label, plot.y_label)]
    if plot.reference == "diagonal":
        parts.append(Markup('<path class="reference" d="M{} {}L{} {}"/>').format(x(x.low), y(x.low), x(x.high), y(x.high)))
    else:
        parts.append(Markup('<path class="zero" d="M{} {}H{}"/>').format(frame.left, y(0), frame.width - frame.right))
    parts += [_series(name, number[name], curves[name], x, y, style_of[name], strong=name in strong) for name in drawn]
    parts.append(Markup('<path class="cursor" d="M0 {}V{}"/>').format(frame.top, frame.height - frame.bottom))
    return _svg(frame, plot.alt_text, parts)


def _series(name: str, number: int, rows: pl.DataFrame, x: Scale, y: Scale, style: Style, *, strong: bool) -> Markup:
    values = [
        (x(100 * share), 100 * share, mean, low, high) for share, mean, low, high in rows.select("share", "mean", "low", "high").rows()
    ]
    points = [(place, y(mean)) for place, _, mean, _, _ in values]
    band = ""
    if strong and not rows["low"].null_count():
        edge = [(place, y(high)) for place, _, _, _, high in values]
        edge += [(place, y(low)) for place, _, _, low, _ in reversed(values)]
        band = Markup('<path class="band" d="{}Z"/>').format(_path(edge))
    dots = Markup("").join(
        Markup('<circle cx="{}" cy="{}" r="3.2"/>').format(*point) for point in points if strong and len(points) <= MAX_DOTS
    )
    data = json.dumps([[place, round(share, 4), *(_rounded(value) for value in more)] for place, share, *more in values])
    return Markup(
        '<g class="series {}" data-series="{}" data-name="{}" data-points="{}" style="--colour:{}">{}'
        '<path class="line" d="{}" stroke-dasharray="{}"/>{}</g>'
    ).format("strong" if strong else "faint", number, _short(name), data, style.colour, band, _path(points), _dashes(style, strong), dots)


def network_chart(
    metrics: pl.DataFrame,
    seeds: pl.DataFrame,
    *,
    metric: str,
    methods: Sequence[str],
    random: str,
    ceiling: float | None = None,
    alt_text: str = "",
) -> Markup:
    """Each network's value as a dot, and the mean with its 95% intervals, as HTML; a lane a method, best on top.

    ``metrics`` is the metrics table: the thick bar is the clustered interval, the thin one the two-way interval, if there is one.
    ``seeds``: metric, method, seed, value. ``ceiling`` is drawn as a line.
    """
    info = metric_info(metric)
    rows = metrics.filter((pl.col("metric") == metric) & pl.col("method").is_in(list(methods)))
    lanes = rows.sort(["mean", "method"], descending=[info.better == "larger", False]).to_dicts()
    dots = {name: seeds.filter((pl.col("metric") == metric) & (pl.col("method") == name)).sort("seed") for name in methods}
    values = [value for name in methods for value in dots[name]["value"]] + [info.chance] + ([] if ceiling is None else [ceiling])
    ends = ("mean", "ci95_clustered_low", "ci95_clustered_high", "ci95_two_way_low", "ci95_two_way_high")
    values += [row[end] for row in lanes for end in ends if row[end] is not None]
    style_of, pictures = styles(methods, random=random), []
    for slim in (False, True):
        lane = 44 if slim else 34
        height = 12 + lane * max(1, len(lanes)) + 46
        frame = Frame("slim", 360, height, left=10, right=10) if slim else Frame("broad", 1040, height, left=LABELS)
        room = 0.03 * (max(values) - min(values)) or 1.0
        x = Scale(min(values) - room, max(values) + room, frame.left, frame.width - frame.right)
        parts = [_axes(frame, x, None, f"{info.title} ({info.better} is better)", "")]
        bottom = frame.height - frame.bottom
        parts.append(Markup('<path class="zero" d="M{} {}V{}"/>').format(x(info.chance), frame.top, bottom))
        if ceiling is not None:
            parts.append(
                Markup('<path class="ceiling" d="M{} {}V{}"><title>noise ceiling</title></path>').format(x(ceiling), frame.top, bottom)
            )
        for place, row in enumerate(lanes):
            top = frame.top + lane * place
            parts.append(
                _lane(row, dots[row["method"]], top + (28 if slim else 17), top + 13 if slim else None, x, style_of[row["method"]])
            )
        pictures.append(_svg(frame, alt_text, parts))
    return Markup('<div class="chart">{}</div>').format(Markup("").join(pictures))


def _lane(row: dict[str, float | None], dots: pl.DataFrame, centre: float, above: float | None, x: Scale, style: Style) -> Markup:
    """One method of :func:`network_chart`: dots above ``centre``, mean and intervals below it. ``above``: the height of its name."""
    name = _short(str(row["method"]))
    if above is None:
        parts = [Markup('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>').format(LABELS - 12, centre + 4, name)]
    else:
        parts = [Markup('<text class="name" x="10" y="{}">{}</text>').format(above, name)]
    for seed, value in dots.select("seed", "value").rows():
        tip = f"{name}, seed {seed}: {number_text(value)}"
        parts.append(Markup('<circle class="network" cx="{}" cy="{}" r="3.4"><title>{}</title></circle>').format(x(value), centre - 5, tip))
    for kind, form in (("two_way", "thin"), ("clustered", "thick")):
        low, high = row[f"ci95_{kind}_low"], row[f"ci95_{kind}_high"]
        if low is not None and high is not None:
            parts.append(Markup('<path class="{}" d="M{} {}H{}"/>').format(form, x(low), centre + 7, x(high)))
    mean = x(float(row["mean"] or 0.0))
    tip = f"{name}: mean {number_text(float(row['mean'] or 0.0))}"
    parts.append(Markup('<path class="mean" d="M{} {}l5 5l-5 5l-5 -5Z"><title>{}</title></path>').format(mean, centre + 2, tip))
    return Markup('<g class="lane" style="--colour:{}">{}</g>').format(style.colour, Markup("").join(parts))


def _axes(frame: Frame, x: Scale, y: Scale | None, x_label: str, y_label: str) -> Markup:
    bottom, narrow = frame.height - frame.bottom, frame.form == "slim"
    parts = []
    for place, text in x.ticks(4 if narrow else 8):
        parts.append(
            Markup('<path class="grid" d="M{0} {1}V{2}"/><text x="{0}" y="{3}" text-anchor="middle">{4}</text>').format(
                place, frame.top, bottom, bottom + 17, text
            )
        )
    for place, text in y.ticks(5 if narrow else 7) if y is not None else ():
        parts.append(
            Markup('<path class="grid" d="M{0} {1}H{2}"/><text x="{3}" y="{4}" text-anchor="end">{5}</text>').format(
                frame.left, place, frame.width - frame.right, frame.left - 7, place + 4, text
            )
        )
    middle = (frame.left + frame.width - frame.right) / 2
    parts.append(Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, frame.height - 8, x_label))
    if y_label:
        centre = (frame.top + bottom) / 2
        parts.append(
            Markup('<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>').format(centre, y_label)
        )
    return Markup("").join(parts)


def _svg(frame: Frame, alt_text: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        frame.form, frame.width, frame.height, alt_text, Markup("").join(parts)
    )


def _legend_entry(number: int, name: str, style: Style, *, strong: bool) -> Markup:
    return Markup(
        '<li><button type="button" aria-pressed="true" data-series="{}" style="--colour:{}" class="{}">'
        '<svg viewBox="0 0 34 10" aria-hidden="true"><path class="line" d="M1 5H33" stroke-dasharray="{}"/></svg>{}</button></li>'
    ).format(number, style.colour, "strong" if strong else "faint", _dashes(style, strong), _short(name))


def _dashes(style: Style, strong: bool) -> str:
    if not isinstance(style.line, tuple):
        return "none"
    return " ".join(f"{(2.4 if strong else 1.6) * length:g}" for length in style.line[1])


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
