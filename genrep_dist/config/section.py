"""What all sections of an experiment file share."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict

from genrep_dist.registry import Registry


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)


def require_registered(registry: Registry[Any], name: str) -> str:
    """``name``, if it is registered; else ValueError with the nearest names. The object itself is not loaded."""
    if name in registry:
        return name
    near = difflib.get_close_matches(name, list(registry), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"or install the package that registers it ({registry.group})"
    raise ValueError(f"one of {', '.join(registry)} ({hint})")
