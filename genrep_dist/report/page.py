"""The report: one HTML page that loads nothing, neither from the network nor from other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
from markupsafe import Markup

from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report import sections
from genrep_dist.report.examples import Example
from genrep_dist.report.tables import MINUS, RANDOM, Table, result_tables
from genrep_dist.report.verdict import verdict

_TEMPLATES = files("genrep_dist.report") / "templates"


@dataclass(frozen=True)
class ReportData:
    """All that the page shows. Texts are plain; the page escapes them.

    ``methods`` in the order of the tables. ``facts``: how this was measured, label to value, in the order shown. ``warnings``: what limits
    the reading, each a sentence or two. ``config_yaml``: the resolved experiment, shown folded. ``random``: the name of random removal.
    ``baseline``: the one that the experiment declares; ``noun`` names the explained number. ``blocks``: how tables are divided.
    ``time_unit``: the unit of the costs.
    """

    title: str
    methods: Sequence[str]
    tables: EvaluationTables
    facts: Mapping[str, str]
    warnings: Sequence[str] = ()
    config_yaml: str = ""
    examples: Sequence[Example] = ()
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    random: str = RANDOM
    baseline: str | None = None
    noun: str = "prediction"
    time_unit: sections.TimeUnit = field(default_factory=sections.TimeUnit)

    def result_tables(self, minus: str = "-") -> list[Table]:
        """The tables of the measured numbers, with ``minus`` as the minus sign."""
        return result_tables(self.tables, self.methods, blocks=self.blocks, baseline=self.baseline, random=self.random, minus=minus)


def html_page(data: ReportData) -> str:
    """The whole report as one HTML document (UTF-8), with style, figures and pictures inside.

    It has the verdict, warnings, tables, figures, ranks, costs, examples, and how it was measured. Equal data give an equal page. Raises
    NotCommittedError if nothing was measured.
    """
    return render_template(
        "report.html",
        title=data.title,
        verdict=verdict(data.tables, random=data.random, declared=data.baseline, noun=data.noun),
        warnings=data.warnings,
        tables=_without_repeated_notes(data.result_tables(MINUS)),
        figures=sections.figure_sections(data.tables, data.methods, data.random),
        matrices=sections.rank_matrices(data.tables, data.methods),
        costs=sections.cost_rows(data.tables, data.methods),
        time_unit=data.time_unit,
        examples=data.examples,
        facts=data.facts,
        config_yaml=data.config_yaml,
    )


def render_template(template: str, **values: object) -> str:
    """A template of this package as one HTML document; ``values`` are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _TEMPLATES.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_uri": sections.data_uri, "typographic": sections.typographic}
    style = Markup(_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8"))  # noqa: S704 - the package's own file
    return environment.get_template(template).render(style=style, **values)


def _without_repeated_notes(tables: Sequence[Table]) -> list[tuple[Table, list[str]]]:
    """Each table with its notes; a note of several tables is shown below the first of them."""
    seen: set[str] = set()
    shown = []
    for table in tables:
        shown.append((table, [note for note in table.notes if note not in seen]))
        seen |= set(table.notes)
    return shown
