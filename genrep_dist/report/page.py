"""The report: one HTML page that loads nothing, neither from the network nor from other files."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files

import jinja2
from markupsafe import Markup

from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report import sections
from genrep_dist.report.examples import Example, RemovalExample
from genrep_dist.report.glossary import Term, terms
from genrep_dist.report.tables import MINUS, RANDOM, Table, result_tables
from genrep_dist.report.verdict import Verdict, verdict

_TEMPLATES = files("genrep_dist.report") / "templates"


@dataclass(frozen=True)
class ReportData:
    """All that the page shows. Texts are plain; the page escapes them.

    ``methods`` in the order of the tables. ``facts``: how this was measured, label to value, in the order shown. ``warnings``: what limits
    the reading, each a sentence or two. ``config_yaml``: the resolved experiment, shown folded. ``random``: the name of random removal.
    ``baseline``: the one that the experiment declares; ``simple``: the simple baselines among the methods.
    ``noun`` names the explained number. ``blocks``: how tables are divided.
    ``time_unit``: the unit of the costs. ``removal``: the first example. ``origin``: date, commit, command and the like, label to text.
    ``unit``: the unit of the explained number. ``target``: the explained number in words. ``glossary``: the names of the methods.
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
    simple: Sequence[str] = ()
    noun: str = "prediction"
    time_unit: sections.TimeUnit = field(default_factory=sections.TimeUnit)
    removal: RemovalExample | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    target: str = ""
    glossary: Sequence[Term] = ()

    @cached_property
    def verdict(self) -> Verdict:
        """What was found, in sentences."""
        noun = self.unit or self.noun
        return verdict(self.tables, random=self.random, declared=self.baseline, simple=self.simple, noun=noun)

    @property
    def emphasised(self) -> tuple[str, ...]:
        """The methods that figures show with their bands: the best, the declared baseline and random removal."""
        return tuple(dict.fromkeys(name for name in (self.verdict.best, self.baseline, self.random) if name is not None))

    def result_tables(self, minus: str = "-") -> list[Table]:
        """The tables of the measured numbers, with ``minus`` as the minus sign."""
        return result_tables(self.tables, self.methods, blocks=self.blocks, baseline=self.baseline, random=self.random, minus=minus)


def html_page(data: ReportData, origin: Mapping[str, str] | None = None) -> str:
    """The whole report as one HTML document (UTF-8), with style, figures and pictures inside. ``origin``: instead of that of ``data``.

    It has the verdict, warnings, tables, figures, ranks, costs, examples, and how it was measured. Equal data give an equal page. Raises
    NotCommittedError if nothing was measured.
    """
    figures = sections.figure_sections(data.tables, data.methods, data.random, data.emphasised)
    costs, matrices = sections.cost_rows(data.tables, data.methods), sections.rank_matrices(data.tables, data.methods)
    contents = {
        "example": "An example" if data.removal else "",
        "certainty": "How certain it is",
        "methods": "All methods",
        **{figure.anchor: figure.heading for figure in figures},
        "ranks": "Pairwise comparison" if matrices else "",
        "costs": "Costs" if costs else "",
        "examples": "More examples" if data.examples else "",
        "glossary": "Glossary",
        "measured": "How this was measured",
    }
    return render_template(
        "report.html",
        title=data.title,
        verdict=data.verdict,
        warnings=data.warnings,
        contents={anchor: text for anchor, text in contents.items() if text},
        removal=data.removal,
        noun=data.unit or data.noun,
        unit=data.unit,
        target=data.target,
        origin=data.origin if origin is None else origin,
        tables=_without_repeated_notes(data.result_tables(MINUS)),
        figures=figures,
        matrices=matrices,
        costs=costs,
        time_unit=data.time_unit,
        examples=data.examples,
        glossary=[*data.glossary, *terms(data.tables)],
        facts=data.facts,
        config_yaml=data.config_yaml,
    )


def render_template(template: str, **values: object) -> str:
    """A template of this package as one HTML document; ``values`` are escaped."""
    # The package's own files.
    style, script = (Markup(_TEMPLATES.joinpath(name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))  # noqa: S704
    return _environment().get_template(template).render(style=style, script=script, script_digest=digest(script), **values)


@functools.cache
def _environment() -> jinja2.Environment:
    """Keeps the templates compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _TEMPLATES.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_uri": sections.data_uri,
        "typographic": sections.typographic,
        "shared_words": sections.shared_words,
        "linked": sections.linked,
    }
    return environment


def digest(script: str) -> str:
    """What the page's Content-Security-Policy says of its only script: no other one is run, whatever the data contain."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _without_repeated_notes(tables: Sequence[Table]) -> list[tuple[Table, list[str]]]:
    """Each table with its notes; a note of several tables is shown below the first of them."""
    seen: set[str] = set()
    shown = []
    for table in tables:
        shown.append((table, [note for note in table.notes if note not in seen]))
        seen |= set(table.notes)
    return shown
