"""The report: one HTML page that needs nothing else, neither network nor files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
import polars as pl
from markupsafe import Markup

from genrep_dist.evaluation.results import Judged
from genrep_dist.report import sections
from genrep_dist.report.examples import Example
from genrep_dist.report.tables import RANDOM, Table, tables
from genrep_dist.report.verdict import MINUS, Verdict, verdict

_TEMPLATES = files("genrep_dist.report") / "templates"


@dataclass(frozen=True)
class ReportData:
    """All that the page shows. Texts are plain; the page escapes them.

    ``summary``, ``deletion`` and ``judged`` as :mod:`genrep_dist.evaluation` returns them. ``facts``: how this was measured, label to
    value, in the order shown (problem, recipe, target, retrain policy, seeds, points, fractions, retrainings, seconds, versions,
    digests). ``warnings``: what limits the reading, each a sentence or two. ``config_yaml``: the resolved experiment, shown folded.
    ``baseline``: random removal's name. ``declared``: the experiment's own baseline. ``blocks``: how tables are divided.
    ``bootstrap_seed``: as given to ``summarise``. ``clock``: whose seconds the costs are.
    """

    title: str
    summary: pl.DataFrame
    deletion: pl.DataFrame
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()
    config_yaml: str = ""
    judged: Judged = field(default_factory=Judged)
    examples: Sequence[Example] = ()
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baseline: str = RANDOM
    declared: str | None = None
    bootstrap_seed: int = 0
    clock: sections.Clock = field(default_factory=sections.Clock)


def html_page(data: ReportData) -> str:
    """The whole report as one HTML document (UTF-8), with style, figures and pictures inside.

    It opens with the verdict, then warnings, the tables, the curves, the networks, the other metrics, the ranks, what methods cost
    and examples, and ends with how it was measured. Equal data give an equal page. Raises NotCommittedError when there is nothing
    to report.
    """
    found = report_verdict(data)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _TEMPLATES.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=data.title,
        style=Markup(_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8")),  # noqa: S704 - the package's own file
        verdict=found,
        warnings=data.warnings,
        tables=_with_notes(
            tables(data.summary, data.judged, blocks=data.blocks, baseline=data.declared, random=data.baseline, minus=MINUS)
        ),
        deletions=sections.deletions(data.summary, data.deletion, data.judged, data.baseline, data.bootstrap_seed),
        metrics=sections.other_metrics(data.summary, data.judged, data.baseline),
        inspection=sections.inspection(data.summary, data.judged, data.baseline),
        matrices=sections.rank_matrices(data.summary, data.judged),
        costs=sections.costs(data.summary, data.judged),
        clock=data.clock,
        examples=sections.shown_examples(data.examples),
        facts=data.facts,
        config_yaml=data.config_yaml,
    )


def _with_notes(found: Sequence[Table]) -> list[tuple[Table, list[str]]]:
    """Each table with its notes; on one page a note that several tables share stands below the first of them."""
    seen: set[str] = set()
    shown = []
    for table in found:
        shown.append((table, [note for note in table.notes if note not in seen]))
        seen |= set(table.notes)
    return shown


def report_verdict(data: ReportData) -> Verdict:
    """The sentences with which the page opens, for a terminal or a log."""
    return verdict(data.summary, data.deletion, data.judged, baseline=data.baseline, declared=data.declared, seed=data.bootstrap_seed)
