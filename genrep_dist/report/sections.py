"""The parts of the page, from tables to what its templates draw."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl
from markupsafe import Markup

from genrep_dist.evaluation.metrics import METRICS
from genrep_dist.evaluation.results import Judged
from genrep_dist.evaluation.statistics import by_seed, curves
from genrep_dist.report.examples import Example, Sample
from genrep_dist.report.figures import deletion_figure, inspection_figure, metric_figure
from genrep_dist.report.styles import INK
from genrep_dist.report.tables import HEADINGS, NOT_KNOWN, all_metrics, mean_ceiling, number, signs_of
from genrep_dist.report.verdict import MINUS


@dataclass(frozen=True)
class Figure:
    """A figure with its heading, a line above it, one below it, and what it shows for those who cannot see it."""

    heading: str
    explanation: str
    caption: str
    picture: Markup
    text: str


@dataclass(frozen=True)
class Rank:
    """One line of a rank matrix: against each other method (None: itself) the share of draws, as text and as a shade."""

    method: str
    cells: tuple[tuple[float, Markup] | None, ...]
    mean_rank: str
    share_best: float | None


@dataclass(frozen=True)
class Matrix:
    title: str
    ranks: tuple[Rank, ...]


@dataclass(frozen=True)
class Clock:
    """What the seconds of a run are seconds of: their ``unit``, and a sentence that says so."""

    unit: str = "seconds"
    note: str = "Seconds of one worker."

    @classmethod
    def of(cls, devices: Collection[str], num_gpus: float) -> Clock:
        """``devices``: the kinds that trained ("cpu", "cuda"); ``num_gpus``: the share of a GPU that each worker took, 0 if not said."""
        if set(devices) == {"cpu"}:
            return cls("CPU-seconds", "CPU-seconds: the time of one worker, on one core.")
        if set(devices) == {"cuda"}:
            share = f"with {num_gpus:g} of a GPU, so that a GPU's own time is that share of it" if 0 < num_gpus < 1 else "on a GPU"
            return cls("GPU-seconds", f"GPU-seconds: the time of one worker, {share}.")
        return cls(note="Seconds of one worker; some ran on a CPU, some on a GPU.") if devices else cls()


@dataclass(frozen=True)
class Cost:
    method: str
    retrainings: str
    retraining_seconds: str
    explanation_seconds: str


@dataclass(frozen=True)
class Thumb:
    """A sample, ready for the page; ``source`` is its picture as a data: URI."""

    id: int
    label: str
    phi: str
    flipped: bool
    source: str | None
    text: str | None


@dataclass(frozen=True)
class ShownMethod:
    method: str
    sides: tuple[tuple[str, tuple[Thumb, ...]], ...]


@dataclass(frozen=True)
class ShownExample:
    seed: int
    point: Thumb
    prediction: str
    methods: tuple[ShownMethod, ...]


def deletions(summary: pl.DataFrame, deletion: pl.DataFrame, judged: Judged, baseline: str, seed: int) -> list[Figure]:
    """For each sign its curves, then its networks."""
    methods = summary["method"].to_list()
    means, seeds, table = curves(deletion, seed=seed), by_seed(deletion), all_metrics(summary, judged)
    band = "" if deletion["seed"].n_unique() < 2 else " Bands: 95% interval of each point, bootstrap over networks."
    found = []
    for sign in signs_of(summary):
        effect = "rise" if sign == "negative" else "fall"
        picture = deletion_figure(means, methods=methods, sign=sign, baseline=baseline, image="svg")
        found.append(
            Figure(
                f"Deletion curves, {HEADINGS[sign]}",
                f"Leaving out the {sign} samples that a method names should make the curve {effect}.",
                "Change of the prediction (DEL) against the share of the training set that was left out; mean over networks and "
                f"test points.{band}",
                _inline(picture, f"{sign}-curves"),
                f"Deletion curves, {sign} samples removed. The table above has their areas.",
            )
        )
        metric, areas = f"auc_del_{sign}", seeds.filter(pl.col("sign") == sign).select("method", "seed", value="auc")
        picture = metric_figure(table, areas, metric=metric, methods=methods, baseline=baseline, image="svg")
        found.append(
            Figure(
                f"Networks, {HEADINGS[sign]}",
                "",
                _dots(table, metric),
                _inline(picture, f"{sign}-seeds"),
                f"Area under the deletion curve of each network, {sign} samples removed.",
            )
        )
    return found


def other_metrics(summary: pl.DataFrame, judged: Judged, baseline: str) -> list[Figure]:
    """A figure for each metric that is not about deletion curves."""
    # Sorted first, so that a mean does not depend on the order of rows by its last bit.
    points = judged.points.sort("metric", "method", "seed", "test_id").group_by("metric", "method", "seed", maintain_order=True)
    seeds = points.agg(value=pl.col("value").mean())
    found = []
    for metric in judged.measured:
        if metric.startswith("auc_del_"):
            continue
        picture = metric_figure(
            judged.metrics,
            seeds.filter(pl.col("metric") == metric),
            metric=metric,
            methods=summary["method"].to_list(),
            baseline=baseline,
            ceiling=mean_ceiling(judged, metric),
            image="svg",
        )
        title = METRICS[metric].title
        found.append(
            Figure(
                _heading(title),
                "",
                _dots(judged.metrics, metric),
                _inline(picture, metric.replace("_", "-")),
                f"{title} of each network. The table above has the means.",
            )
        )
    return found


def inspection(summary: pl.DataFrame, judged: Judged, baseline: str) -> Figure | None:
    """The inspection curves; None where no labels were flipped."""
    if not judged.inspection.height:
        return None
    picture = inspection_figure(judged.inspection, methods=summary["method"].to_list(), baseline=baseline, image="svg")
    return Figure(
        "Inspection curves",
        "Looking at the training samples with the largest self-influence first should find the flipped labels early.",
        "Share of the flipped labels found against the share of the training set looked at; mean over networks. The diagonal is chance.",
        _inline(picture, "inspection"),
        "Inspection curves. The table above has their areas.",
    )


def rank_matrices(summary: pl.DataFrame, judged: Judged) -> list[Matrix]:
    """A matrix for each metric with ranks, methods in the order of their mean ranks; none with one seed, whose shares are null."""
    found = []
    for metric in METRICS:
        known = judged.ranks.filter((pl.col("metric") == metric) & pl.col("share").is_not_null())
        shares = {(method, other): share for method, other, share in known.select("method", "other", "share").iter_rows()}
        ranked = judged.best.filter(pl.col("metric") == metric).select("method", "mean_rank", "share_best")
        best = {method: (mean_rank, share_best) for method, mean_rank, share_best in ranked.iter_rows()}
        methods = [method for method in summary["method"] if any(method == first for first, _ in shares)]
        methods.sort(key=lambda method: best[method][0] if method in best else len(methods))
        ranks = []
        for method in methods:
            cells = [None if (method, other) not in shares else (shares[method, other], _shade(shares[method, other])) for other in methods]
            mean_rank, share_best = best.get(method, (None, None))
            ranks.append(Rank(method, tuple(cells), number(mean_rank, 1), share_best))
        if ranks:
            found.append(Matrix(_heading(METRICS[metric].title), tuple(ranks)))
    return found


def costs(summary: pl.DataFrame, judged: Judged) -> list[Cost]:
    """What each method took, in the summary's order."""
    found = {row["method"]: row for row in judged.costs.iter_rows(named=True)}
    return [
        Cost(
            method,
            NOT_KNOWN if found[method]["retrainings"] is None else f"{found[method]['retrainings']:,}",
            _seconds(found[method]["retraining_seconds"]),
            _seconds(found[method]["explanation_seconds"]),
        )
        for method in summary["method"]
        if method in found
    ]


def shown_examples(examples: Sequence[Example]) -> list[ShownExample]:
    return [
        ShownExample(
            example.seed,
            _thumb(example.point),
            example.prediction.replace("-", MINUS),
            tuple(
                ShownMethod(
                    named.method,
                    (("raise it", tuple(map(_thumb, named.raising))), ("lower it", tuple(map(_thumb, named.lowering)))),
                )
                for named in example.methods
            ),
        )
        for example in examples
    ]


def _heading(title: str) -> str:
    return title[0].upper() + title[1:]


def _dots(metrics: pl.DataFrame, metric: str) -> str:
    rows = metrics.filter(pl.col("metric") == metric)
    what = "the mean over its test points" if rows["num_points"].max() != 1 else "its value"
    caption = f"Each dot is one trained network: {what}. Diamond: the mean of the networks."
    if not rows["ci95_clustered_low"].null_count():
        caption = f"{caption[:-1]}; bar: its 95% interval."
    if rows["ci95_two_way_low"].null_count() < rows.height:
        caption += " Thin line: the two-way interval, for other networks and other test points."
    return caption


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return NOT_KNOWN
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _shade(share: float) -> Markup:
    """The cell's ground: blue where the method is mostly better, orange where it is mostly worse, deeper the surer."""
    colour = "15 125 194" if share >= 0.5 else "213 94 0"
    return Markup(f"rgb({colour} / {abs(2 * share - 1) * 0.5:.3f})")  # noqa: S704 - numbers alone


def _thumb(sample: Sample) -> Thumb:
    source = None if sample.picture is None else f"data:image/png;base64,{base64.b64encode(sample.picture).decode()}"
    phi = "" if sample.phi is None else f"{sample.phi:+.3g}".replace("-", MINUS)
    return Thumb(sample.id, sample.label.replace("-", MINUS), phi, sample.flipped, source, sample.text)


def _inline(svg: bytes, prefix: str) -> Markup:
    """A figure of this package as an element of the page: ids made unique, ink in the page's own colour, size left to the page.

    Only the text of :mod:`genrep_dist.report.figures` comes here; it draws names as outlines and escapes them in comments.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r'<svg \1aria-hidden="true" focusable="false"', text, count=1)
    text = re.sub(r'(\bid=")', rf"\1{prefix}-", text)
    text = re.sub(r'((?:xlink:)?href="#)', rf"\1{prefix}-", text)
    text = re.sub(r"(url\(#)", rf"\1{prefix}-", text)
    return Markup(text.replace(INK, "currentColor"))  # noqa: S704 - drawn here, names are outlines
