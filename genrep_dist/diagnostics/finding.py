"""The result of a check."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

Colour = Literal["green", "amber", "red"]
K = TypeVar("K")

_ORDER: tuple[Colour, ...] = ("green", "amber", "red")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    ``colour``: green, no action needed; amber, the numbers are correct but mean less than they seem to; red, the numbers cannot be
    trusted. ``number``: what was measured; ``bound``: its limit, in the same unit. Both are finite, or None if there is none or the
    measurement is not finite. ``text``: what was found and where the bound comes from. ``remedy``: what to do, empty when green.
    ``seed``: the seed that the number belongs to, or None. A check of several kernels gives several findings with one ``name``.
    """

    name: str
    colour: Colour
    number: float | None
    bound: float | None
    text: str
    remedy: str
    seed: int | None = None


def compare(
    name: str,
    number: float,
    bound: float,
    text: str,
    remedy: str,
    *,
    seed: int | None = None,
    otherwise: Colour = "red",
    at_least: bool = False,
) -> Finding:
    """Green if ``number`` is at most (with ``at_least``: at least) ``bound``, else the colour ``otherwise``. NaN is never green."""
    fine = number >= bound if at_least else number <= bound
    if not math.isfinite(number):
        text = f"{text} (measured: {number})"
    found = float(number) if math.isfinite(number) else None
    return Finding(name, "green" if fine else otherwise, found, float(bound), text, "" if fine else remedy, seed)


def green(name: str, text: str, *, number: float | None = None, bound: float | None = None, seed: int | None = None) -> Finding:
    """A green finding. A ``number`` that is not finite is left out."""
    found = float(number) if number is not None and math.isfinite(number) else None
    return Finding(name, "green", found, None if bound is None else float(bound), text, "", seed)


def nan_as_inf(number: float) -> float:
    """``number``, with infinity for NaN: the sort key of the worst of several numbers."""
    return math.inf if math.isnan(number) else number


def largest_key(numbers: Mapping[K, float]) -> K:
    """The first key of the largest number. NaN counts as the largest."""
    return max(numbers, key=lambda key: nan_as_inf(numbers[key]))


def count_text(count: int, noun: str) -> str:
    """'1 seed', '2 seeds'."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def names_text(names: list[str]) -> str:
    """The first five names, and the number of the others."""
    shown = ", ".join(names[:5]) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def worst_colour(findings: Iterable[Finding]) -> Colour:
    """The worst colour of ``findings``; green for none."""
    return max((finding.colour for finding in findings), key=_ORDER.index, default="green")
