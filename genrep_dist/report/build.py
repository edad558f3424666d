"""The files of a report, from the data that they show."""

from __future__ import annotations

from genrep_dist.report.figures import curve_figure
from genrep_dist.report.latex import latex
from genrep_dist.report.markdown import markdown
from genrep_dist.report.page import ReportData, html_page
from genrep_dist.report.tables import MINUS


def data_files(data: ReportData) -> dict[str, bytes]:
    """File name -> content of the whole report: table.md, table.tex, report.html and the curves as PNG."""
    files = {
        "table.md": markdown(data.result_tables()).encode(),
        "table.tex": latex(data.result_tables(MINUS)).encode(),
        "report.html": html_page(data).encode(),
    }
    for curve in data.tables.curves:
        files[f"{curve.name}.png"] = curve_figure(curve, methods=data.methods, emphasised=data.emphasised, random=data.random, image="png")
    return files
