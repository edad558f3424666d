"""Writes the comparison with the paper's Table 1 as Markdown, HTML, a figure and Parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from genrep_dist.paper.table1 import DataColumn, Table1Page, TextTable, long_table, table1_page
from genrep_dist.paper.table1_figure import table1_figure
from genrep_dist.provenance import processor_name
from genrep_dist.report.markdown import escaped
from genrep_dist.report.page import render_template


def write_table1(columns: Sequence[DataColumn], folder: Path, profile: str) -> list[Path]:
    """Write table1.md, table1.html, table1.png and table1.parquet into ``folder``. Returns their paths."""
    made = table1_page(
        columns, profile=profile, date=f"{datetime.now(UTC):%Y-%m-%d}", hardware=f"{processor_name()}, {os.cpu_count()} CPU cores"
    )
    folder.mkdir(parents=True, exist_ok=True)
    figure = table1_figure(columns)
    (folder / "table1.png").write_bytes(figure)
    (folder / "table1.md").write_text(table1_markdown(made, "table1.png"), encoding="utf-8")
    (folder / "table1.html").write_text(table1_html(made, figure), encoding="utf-8")
    long_table(columns).write_parquet(folder / "table1.parquet")
    return [folder / f"table1.{ending}" for ending in ("md", "html", "png", "parquet")]


def table1_markdown(page: Table1Page, figure: str) -> str:
    """The page as Markdown with the image at the path ``figure``; texts are escaped. Ends with a newline."""
    parts = [f"# {escaped(page.title)}\n", *(f"{escaped(sentence)}\n" for sentence in page.intro), f"![all areas]({figure})\n"]
    for title, tables in page.sections:
        if tables:
            parts += [f"## {escaped(title)}\n", *(_table(table) for table in tables)]
    return "\n".join(parts)


def _table(table: TextTable) -> str:
    rows = [tuple(map(escaped, table.headings)), (":--",) * len(table.headings), *(tuple(map(escaped, row)) for row in table.rows)]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([f"### {escaped(table.title)}\n", f"{lines}\n", *(f"{escaped(note)}\n" for note in table.notes)])


def table1_html(page: Table1Page, figure: bytes) -> str:
    """The page as one HTML document (UTF-8) that needs no other file; ``figure`` is a PNG."""
    return render_template("table1.html", page=page, figure=figure)
