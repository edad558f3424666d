"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from genrep_dist.report.tables import Row, Table


def markdown(tables: Sequence[Table]) -> str:
    """All tables, the best value in bold, each with notes that define its numbers and marks.

    Several tables have headings, and so have the blocks of a table. Names are escaped, so that a pipe or a tag in one is shown as text.
    Ends with a newline.
    """
    return "\n".join(_table(table, headed=len(tables) > 1) for table in tables)


def _table(table: Table, *, headed: bool) -> str:
    parts = [f"## {table.title}\n"] if headed else []
    last = len(table.blocks) - 1
    for place, (title, rows) in enumerate(table.blocks):
        if title:
            parts.append(f"### {escaped(title)}\n")
        lines = [[escaped(heading) for heading in table.headings], [":--"] + ["--:"] * (len(table.headings) - 1)]
        lines += [_line(table, row) for row in rows]
        if table.ceiling is not None and place == last:
            lines.append(["*noise ceiling*", *(f"*{text}*" if text else "" for text in table.ceiling_cells)])
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    return "\n".join([*parts, "\n".join(escaped(note) for note in table.notes) + "\n"])


def _line(table: Table, row: Row) -> list[str]:
    cells = []
    for cell in row.cells:
        mean = f"**{cell.mean}**" if cell.best else cell.mean
        cells += [mean + escaped(cell.marks), *table.texts(cell)]
    name = escaped(row.method)
    return [f"**{name}**" if row.leads else name, *cells, row.design]


def escaped(text: str) -> str:
    """``text`` on one line, as Markdown shows it literally."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for special in "\\`*_[]|":
        text = text.replace(special, f"\\{special}")
    return text
