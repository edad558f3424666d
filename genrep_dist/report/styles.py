"""The style of each method in all figures: a colour, a line and a marker, so that methods can be told apart without colour too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

INK = "#1f2430"
"""Text and axes. The page replaces this colour by its own text colour."""
QUIET = "#8b93a1"
"""Grid and random removal: legible on white and on near-black."""

# Okabe and Ito's colours for all kinds of colour vision, without black (the ink) and yellow (too pale on paper), the blue a little
# lighter so that it shows on near-black too; then a violet and a brown that differ from all of them in lightness.
COLOURS = ("#0f7dc2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5ccc", "#8c6d31")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.6, 1.2, 1.6)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Style:
    colour: str
    line: Any
    marker: str


def styles(methods: Sequence[str], *, random: str = "random") -> dict[str, Style]:
    """A style for each method by its place in ``methods``; random removal is always the grey dashed line.

    32 methods differ in colour and line, as curves without markers need; 28 in line and marker, without colour.
    """
    others = [method for method in methods if method != random]
    found = {
        method: Style(COLOURS[(place + place // len(COLOURS)) % len(COLOURS)], LINES[place % len(LINES)], MARKERS[place % len(MARKERS)])
        for place, method in enumerate(others)
    }
    found[random] = Style(QUIET, (0, (3, 2)), "x")
    return found
