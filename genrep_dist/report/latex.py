"""Tables as LaTeX, for the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from genrep_dist.report.tables import Row, Table

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        **{letter: f"\\{letter}" for letter in "&%$#_"},
        # TeX would join these with what follows, or show another letter for them.
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
        "*": "$*$",
        "\N{MINUS SIGN}": "$-$",
        "–": r"\textendash{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "√": r"$\surd$",
        "₋": "$_{-}$",
        "₊": "$_{+}$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "↓": r"$\downarrow$",
        "[": "{[}",  # after "\\" a bracket would be a length
        "]": "{]}",
    }
)


def latex(tables: Sequence[Table]) -> str:
    r"""A ``table`` environment for each table, to be used with ``\usepackage{booktabs}``; made with a minus sign for ``minus``.

    Texts are escaped. Ends with a newline.
    """
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(_table(table) for table in tables)


def _table(table: Table) -> str:
    columns = len(table.headings)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(table.title)}. {' '.join(escaped(note) for note in table.notes)}}}",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _row([escaped(heading) for heading in table.headings]),
    ]
    for title, rows in table.blocks:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\textit{{{escaped(title)}}}}} \\")
        lines += [_line(table, row) for row in rows]
    if table.ceiling is not None:
        lines += [r"\midrule", _row(["noise ceiling", *(escaped(text) for text in table.ceiling_cells)])]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _line(table: Table, row: Row) -> str:
    cells = []
    for cell in row.cells:
        marks = rf"\textsuperscript{{{escaped(cell.marks)}}}" if cell.marks else ""
        mean = rf"\textbf{{{escaped(cell.mean)}}}" if cell.best else escaped(cell.mean)
        cells += [mean + marks, *(escaped(text) for text in table.texts(cell))]
    name = escaped(row.method)
    return _row([rf"\textbf{{{name}}}" if row.leads else name, *cells, escaped(row.design)])


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """``text`` on one line, as TeX shows it literally; letters beyond these need an engine that reads UTF-8 and a font that has them."""
    return " ".join(text.split()).translate(_ESCAPES).replace("--", "-{}-")
