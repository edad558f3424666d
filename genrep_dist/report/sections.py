"""The parts of the page: figures, rank matrices and costs, as the templates show them."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl
from markupsafe import Markup

from genrep_dist.evaluation.metrics.base import CurvePlot, MetricInfo, metric_info
from genrep_dist.evaluation.statistics import seed_means
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.charts import curve_chart, network_chart
from genrep_dist.report.tables import MINUS, NOT_KNOWN, mean_ceiling, number, sorted_methods


@dataclass(frozen=True)
class FigureSection:
    """A figure with its heading, a line above it and one below it; ``anchor`` is its id."""

    heading: str
    explanation: str
    caption: str
    picture: Markup
    anchor: str


@dataclass(frozen=True)
class RankRow:
    """One line of a rank matrix: the share of draws against each other method, as a number and as a colour (None: itself)."""

    method: str
    cells: tuple[tuple[float, Markup] | None, ...]
    mean_rank: str
    share_best: float | None


@dataclass(frozen=True)
class RankMatrix:
    title: str
    rows: tuple[RankRow, ...]


@dataclass(frozen=True)
class TimeUnit:
    """The unit of a run's seconds, and a sentence that defines it."""

    name: str = "seconds"
    note: str = "Seconds of one worker."

    @classmethod
    def for_devices(cls, devices: Collection[str], num_gpus: float) -> TimeUnit:
        """``devices``: the kinds that trained ("cpu", "cuda"); ``num_gpus``: each worker's share of a GPU, 0 if it is not declared."""
        if set(devices) == {"cpu"}:
            return cls("CPU-seconds", "CPU-seconds: the time of one worker, on one core.")
        if set(devices) == {"cuda"}:
            share = f"with {num_gpus:g} of a GPU, so that a GPU's own time is that share of it" if 0 < num_gpus < 1 else "on a GPU"
            return cls("GPU-seconds", f"GPU-seconds: the time of one worker, {share}.")
        return cls(note="Seconds of one worker; some ran on a CPU, some on a GPU.") if devices else cls()


def figure_sections(tables: EvaluationTables, methods: Sequence[str], random: str, emphasised: Collection[str]) -> list[FigureSection]:
    """For each measured number its curves, if it has any, then the values of the networks; the other curves of a metric come after them.

    ``emphasised``: the methods whose curves have bands.
    """
    seeds = seed_means(tables.points, methods)
    found = []
    for metric in tables.measured_metrics:
        curves = tables.curves_of(metric)
        for info in metric.numbers:
            if info.name in tables.measured:
                found += [_curve_section(curve, methods, random, emphasised) for curve in curves if curve.metric == info.name]
                found.append(_network_section(info, tables, seeds, methods, random))
        found += [_curve_section(curve, methods, random, emphasised) for curve in curves if curve.metric is None]
    return found


def _curve_section(curve: CurvePlot, methods: Sequence[str], random: str, emphasised: Collection[str]) -> FigureSection:
    picture = curve_chart(curve, methods=methods, emphasised=emphasised, random=random)
    return FigureSection(curve.heading, curve.explanation, curve.caption, picture, f"figure-{curve.name.replace('_', '-')}")


def _network_section(info: MetricInfo, tables: EvaluationTables, seeds: pl.DataFrame, methods: Sequence[str], random: str) -> FigureSection:
    rows = tables.metrics.filter(pl.col("metric") == info.name)
    what = "the mean over its test points" if rows["num_points"].max() != 1 else "its value"
    caption = f"Each dot is one trained network: {what}. Diamond: the mean of the networks."
    if not rows["ci95_clustered_low"].null_count():
        caption = f"{caption[:-1]}; bar: its 95% interval."
    if rows["ci95_two_way_low"].null_count() < rows.height:
        caption += " Thin line: the two-way interval, which covers other networks and other test points."
    picture = network_chart(
        tables.metrics,
        seeds,
        metric=info.name,
        methods=methods,
        random=random,
        ceiling=mean_ceiling(tables, info.name),
        alt_text=f"{info.title} of each network. The table above has the means.",
    )
    return FigureSection(f"Networks, {info.title}", "", caption, picture, f"networks-{info.name.replace('_', '-')}")


def rank_matrices(tables: EvaluationTables, methods: Sequence[str]) -> list[RankMatrix]:
    """A matrix for each number with ranks, methods in the order of their mean ranks; none with one seed, whose shares are null."""
    found = []
    for metric in tables.measured:
        known = tables.ranks.filter((pl.col("metric") == metric) & pl.col("share").is_not_null())
        shares = {(method, other): share for method, other, share in known.select("method", "other", "share").iter_rows()}
        ranked = tables.best.filter(pl.col("metric") == metric).select("method", "mean_rank", "share_best")
        best = {method: (mean_rank, share_best) for method, mean_rank, share_best in ranked.iter_rows()}
        shown = [method for method in methods if any(method == first for first, _ in shares)]
        shown.sort(key=lambda method: best[method][0] if method in best else len(shown))
        rows = []
        for method in shown:
            cells = [None if (method, other) not in shares else (shares[method, other], _colour(shares[method, other])) for other in shown]
            mean_rank, share_best = best.get(method, (None, None))
            rows.append(RankRow(method, tuple(cells), number(mean_rank, 1), share_best))
        if rows:
            title = metric_info(metric).title
            found.append(RankMatrix(title[0].upper() + title[1:], tuple(rows)))
    return found


def cost_rows(tables: EvaluationTables, methods: Sequence[str]) -> list[tuple[str, ...]]:
    """(method, retrainings, seconds of retraining, seconds of explanation) as texts, in the order of the tables."""
    rows = {row[0]: row[1:] for row in tables.costs.iter_rows()}
    return [
        (method, NOT_KNOWN if rows[method][0] is None else f"{rows[method][0]:,}", *map(_seconds, rows[method][1:]))
        for method in sorted_methods(tables.metrics, [metric_info(name) for name in tables.measured], methods)
        if method in rows
    ]


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NOT_KNOWN
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _colour(share: float) -> Markup:
    """The background of a rank: blue if the method is mostly better, orange if it is mostly worse, stronger the clearer it is."""
    colour = "15 125 194" if share >= 0.5 else "213 94 0"
    return Markup(f"rgb({colour} / {abs(2 * share - 1) * 0.5:.3f})")  # noqa: S704 - numbers alone


def data_uri(picture: bytes) -> str:
    """A PNG as a data: URI."""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def typographic(text: object) -> str:
    """``text`` with minus signs instead of hyphens."""
    return str(text).replace("-", MINUS)


def linked(text: str) -> Markup:
    """``text`` with its web addresses as links."""
    parts = re.split(r"(https?://[^\s<>\"']+)", text)
    link = Markup('<a href="{0}">{0}</a>')
    return Markup("").join((link if place % 2 else Markup("{}")).format(part) for place, part in enumerate(parts))


def shared_words(text: str, other: str | None) -> Markup:
    """``text`` with the words marked that ``other`` has too; words of fewer than four letters are not marked."""
    known = set(re.findall(r"\w{4,}", (other or "").lower()))
    parts = re.split(r"(\w{4,})", text)
    return Markup("").join(Markup("<mark>{}</mark>").format(part) if part.lower() in known else Markup("{}").format(part) for part in parts)
