"""Words of the grammar of method names."""

from __future__ import annotations

RESERVED_NAMES = (
    "none",
    "all",
    "external",
    "random",
    "initial",
    "middle",
    "final",
    "tracincp",
    "influence-function",
    "representer-point",
)
"""Names that no kernel, importance or scores of the user's own can have, besides those that are registered."""
