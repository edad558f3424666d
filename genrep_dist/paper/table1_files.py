"""The page of the paper's table as Markdown and as one HTML document."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from genrep_dist.paper.table1 import Column, Grid, Page, long_table, page
from genrep_dist.report.markdown import escaped

_TEMPLATES = files("genrep_dist.report") / "templates"


def write_table1(columns: Sequence[Column], folder: Path, profile: str) -> list[Path]:
    """Write table1.md, table1.html and table1.parquet into ``folder``, dated and with this machine's name of itself; their paths."""
    made = page(
        columns, profile=profile, date=f"{datetime.now(UTC):%Y-%m-%d}", hardware=f"{platform.machine()}, {os.cpu_count()} CPU cores"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table1.md").write_text(table1_markdown(made), encoding="utf-8")
    (folder / "table1.html").write_text(table1_html(made), encoding="utf-8")
    long_table(columns).write_parquet(folder / "table1.parquet")
    return [folder / name for name in ("table1.md", "table1.html", "table1.parquet")]


def table1_markdown(page: Page) -> str:
    """The page as Markdown; texts are escaped. Ends with a newline."""
    parts = [f"# {escaped(page.title)}\n", *(f"{escaped(sentence)}\n" for sentence in page.intro)]
    for title, grids in page.sections:
        if grids:
            parts += [f"## {escaped(title)}\n", *(_grid(grid) for grid in grids)]
    return "\n".join(parts)


def _grid(grid: Grid) -> str:
    lines = [grid.headings, (":--",) * len(grid.headings)]
    shown = [tuple(escaped(text) for text in lines[0]), lines[1], *(tuple(escaped(text) for text in row) for row in grid.rows)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in shown)
    return "\n".join([f"### {escaped(grid.title)}\n", f"{table}\n", *(f"{escaped(note)}\n" for note in grid.notes)])


def table1_html(page: Page) -> str:
    """The page as one HTML document (UTF-8) that needs no other file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATES.joinpath("table1.html").read_text(encoding="utf-8"))
    style = Markup(_TEMPLATES.joinpath("report.css").read_text(encoding="utf-8"))  # noqa: S704 - the package's own file
    return template.render(page=page, style=style)
