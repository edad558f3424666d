"""The checks. Each is one file with a function ``check``, and one line in :data:`CHECKS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding

Check = Callable[[CheckContext], Iterable[Finding]]

_FILES = (
    "extensions",
    "mode",
    "normalisation",
    "dropout",
    "gradients",
    "features",
    "batch_size",
    "reproduction",
    "kernel",
    "gram",
    "surrogate_residual",
    "descent_rate",
    "efficiency",
    "influence",
    "tracking_identity",
    "optimizer",
    "finite",
    "scores",
    "external_scores",
    "ledger",
    "originals",
    "retraining",
    "published_results",
    "learning",
    "power",
)

CHECKS: dict[str, Check] = {name.replace("_", " "): import_module(f"{__name__}.{name}").check for name in _FILES}
"""Checks by name, in the order of the report."""
