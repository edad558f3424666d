"""The report: one HTML page that needs nothing else, neither network nor files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import jinja2
import polars as pl
from markupsafe import Markup

from genrep_dist.evaluation.statistics import by_seed, curves
from genrep_dist.report.figures import deletion_figure, seeds_figure
from genrep_dist.report.styles import INK
from genrep_dist.report.tables import EXPLANATION, HEADINGS, INTERVALS, signs_of, table_rows
from genrep_dist.report.verdict import MINUS, Verdict, verdict

_TEMPLATES = files("genrep_dist.report") / "templates"


@dataclass(frozen=True)
class ReportData:
    """All that the page shows. Texts are plain; the page escapes them.

    ``summary`` and ``deletion`` as :mod:`genrep_dist.evaluation` returns them. ``facts``: how this was measured, label to value, in
    the order shown (problem, recipe, target, retrain policy, seeds, points, fractions, retrainings, seconds, versions, digests).
    ``warnings``: what limits the reading, each a sentence or two. ``config_yaml``: the resolved experiment, shown folded.
    ``baseline``: the method that all are held against. ``bootstrap_seed``: as given to ``summarise``.
    """

    title: str
    summary: pl.DataFrame
    deletion: pl.DataFrame
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()
    config_yaml: str = ""
    baseline: str = "random"
    bootstrap_seed: int = 0


@dataclass(frozen=True)
class _Section:
    """The two figures of one sign, ready to go into the page."""

    heading: str
    explanation: str
    caption: str
    curves: Markup
    seeds: Markup
    curves_text: str
    seeds_text: str


def html_page(data: ReportData) -> str:
    """The whole report as one HTML document (UTF-8), with style and figures inside.

    It opens with the verdict, then warnings, the table, the curves and the networks, and ends with how it was measured. Equal data
    give an equal page. Raises NotCommittedError when there is nothing to report.
    """
    found = verdict(data.summary, data.deletion, baseline=data.baseline, seed=data.bootstrap_seed)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATES.joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        title=data.title,
        style=Markup(_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8")),  # noqa: S704 - the package's own file
        verdict=found,
        warnings=data.warnings,
        signs=[HEADINGS[sign] for sign in signs_of(data.summary)],
        rows=table_rows(data.summary, minus=MINUS),
        notes=[EXPLANATION[sign] for sign in signs_of(data.summary)] + [INTERVALS],
        sections=_sections(data),
        facts=data.facts,
        config_yaml=data.config_yaml,
    )


def report_verdict(data: ReportData) -> Verdict:
    """The sentences with which the page opens, for a terminal or a log."""
    return verdict(data.summary, data.deletion, baseline=data.baseline, seed=data.bootstrap_seed)


def _sections(data: ReportData) -> list[_Section]:
    methods = data.summary["method"].to_list()
    means = curves(data.deletion, seed=data.bootstrap_seed)
    seeds = by_seed(data.deletion)
    one_network = data.deletion["seed"].n_unique() < 2
    sections = []
    for sign in signs_of(data.summary):
        effect = "rise" if sign == "negative" else "fall"
        band = "" if one_network else " Bands: 95% interval of each point, bootstrap over networks."
        sections.append(
            _Section(
                heading=HEADINGS[sign],
                explanation=f"Leaving out the {sign} samples that a method names should make the curve {effect}.",
                caption="Change of the prediction (DEL) against the share of the training set that was left out; mean over networks and "
                f"test points.{band}",
                curves=_inline(deletion_figure(means, methods=methods, sign=sign, baseline=data.baseline, image="svg"), f"{sign}-curves"),
                seeds=_inline(seeds_figure(seeds, data.summary, sign=sign, baseline=data.baseline, image="svg"), f"{sign}-seeds"),
                curves_text=f"Deletion curves, {sign} samples removed. The table above has their areas.",
                seeds_text=f"Area under the deletion curve of each network, {sign} samples removed.",
            )
        )
    return sections


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
