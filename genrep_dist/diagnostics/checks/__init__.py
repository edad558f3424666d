"""The checks. Each is one file with a function ``check``, and one line in :data:`CHECKS`.

A file with ``BEFORE_RETRAINING = True`` is also run by `genrep run`, on the first seed, as soon as its original model is trained. Such a
check reads the original model and its outputs, and computes a few rows: it takes seconds, and nothing of the other stages exists yet.
A file that compares with stored numbers has a function ``recomputed``: see :data:`RECOMPUTED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from torch import Tensor

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
    "kernel_rows",
    "kernel_minor",
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
    "equal_scores",
    "external_scores",
    "ledger",
    "originals",
    "retraining",
    "published_results",
    "logits",
    "divergence",
    "learning",
    "overlap",
    "power",
)

_MODULES = {name.replace("_", " "): import_module(f"{__name__}.{name}") for name in _FILES}

CHECKS: dict[str, Check] = {name: module.check for name, module in _MODULES.items()}
"""Checks by name, in the order of the report."""
FIRST_SEED_CHECKS: dict[str, Check] = {
    name: module.check for name, module in _MODULES.items() if getattr(module, "BEFORE_RETRAINING", False)
}
"""Those that are run on the first seed before the retrainings."""
RECOMPUTED: dict[str, Callable[[CheckContext], Iterable[Tensor]]] = {
    name: module.recomputed for name, module in _MODULES.items() if hasattr(module, "recomputed")
}
"""Of checks that read stored numbers: for each finding, those numbers as they are computed now, relative to the finding's scale."""
