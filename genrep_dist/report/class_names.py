"""The names of classes, for the samples that a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_DIGITS = tuple(map(str, range(10)))
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_AGNEWS = ("World", "Sports", "Business", "Sci/Tech")

SHIPPED_CLASSES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "digits": (("3", "8"), _DIGITS),
    "mnist": (("3", "8"), _DIGITS),
    "cifar10": (("automobile", "horse"), _CIFAR10),
    "toxicity": (("clean", "toxic"), ("clean", "toxic")),
    "agnews": (("World", "Sci/Tech"), _AGNEWS),
}
"""Problem to the names of its default classes, and of all of its classes by number."""


def shipped_class_names(problem: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes of a shipped problem, in the order of its targets; empty where they are not known without its code."""
    defaults, names = SHIPPED_CLASSES.get(problem, ((), ()))
    if "classes" not in options:
        return defaults
    chosen = options["classes"]
    if chosen is None:
        return names
    return tuple(names[one] if isinstance(one, int) and 0 <= one < len(names) else str(one) for one in chosen)


def checked_class_names(found: object) -> tuple[str, ...]:
    """The problem's attribute ``class_names`` as texts; empty for anything but a list of names."""
    if isinstance(found, str) or not isinstance(found, Sequence):
        return ()
    return tuple(str(name) for name in found)
