"""What a check found."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Colour = Literal["green", "amber", "red"]

_ORDER: tuple[Colour, ...] = ("green", "amber", "red")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    ``colour``: green, nothing to say; amber, the numbers are what they claim to be, but mean less than one may think; red, they are
    not to be trusted. ``number`` is what was measured and ``bound`` what it was held against, in the same unit, both finite; None
    where there is none, or where what was measured is not finite. ``text`` says what was found and where the bound comes from,
    ``remedy`` what to do (empty when green), ``seed`` whose seed the number is (None: it belongs to no single one).
    A check that looks at several kernels gives several findings of one ``name``.
    """

    name: str
    colour: Colour
    number: float | None
    bound: float | None
    text: str
    remedy: str
    seed: int | None = None


def judge(
    name: str,
    number: float,
    bound: float,
    text: str,
    remedy: str,
    *,
    seed: int | None = None,
    worse: Colour = "red",
    at_least: bool = False,
) -> Finding:
    """Green when ``number`` is at most ``bound`` (or, with ``at_least``, at least so much), else ``worse``; NaN is never green."""
    fine = number >= bound if at_least else number <= bound
    if not math.isfinite(number):
        text = f"{text} (measured: {number})"
    found = float(number) if math.isfinite(number) else None
    return Finding(name, "green" if fine else worse, found, float(bound), text, "" if fine else remedy, seed)


def green(name: str, text: str, *, number: float | None = None, bound: float | None = None, seed: int | None = None) -> Finding:
    """A finding that leaves nothing to do; a ``number`` that is not finite is left out."""
    found = float(number) if number is not None and math.isfinite(number) else None
    return Finding(name, "green", found, None if bound is None else float(bound), text, "", seed)


def badness(number: float) -> float:
    """``number``, for finding the worst of several: NaN counts as infinite."""
    return math.inf if math.isnan(number) else number


def counted(count: int, noun: str) -> str:
    """'1 seed', '2 seeds'."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def worst(findings: Iterable[Finding]) -> Colour:
    """The worst colour among ``findings``; green when there are none."""
    return max((finding.colour for finding in findings), key=_ORDER.index, default="green")
