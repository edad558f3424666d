"""The common style and rendering of all figures. It does not depend on the user's matplotlib settings; equal data give equal bytes.

Uses matplotlib's objects without pyplot, so that there is no global state.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.style as mpl_style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from genrep_dist.report.styles import INK, QUIET

Format = Literal["png", "svg"]
WIDTH = 7.4  # inches
PNG_DPI = 160
_FONT = "DejaVu Sans"  # ships with matplotlib: the figure looks the same everywhere

_RC_PARAMS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": [_FONT],
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # "$" in a method's name starts no formula
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": QUIET,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "genrep",
    "svg.fonttype": "path",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw figures in the style of the report, whatever the user's matplotlibrc says."""
    with mpl_style.context("default"), mpl.rc_context(_RC_PARAMS):
        yield


def render(figure: Figure, image: Format) -> bytes:
    """The figure as a white PNG, or as an SVG with a transparent background."""
    buffer = io.BytesIO()
    if image == "png":
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    else:
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def drawable(text: str) -> str:
    """``text`` on one line, with a box for every character that the font lacks, cut to 40 characters."""
    known = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    text = "".join(letter if ord(letter) in known else "\N{WHITE SQUARE}" for letter in " ".join(text.split()))
    text = text if len(text) <= 40 else text[:38] + "…"
    return f" {text}" if text.startswith("_") else text  # a label that begins with "_" would be left out of a legend
