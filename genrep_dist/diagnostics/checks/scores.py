"""The first seed's stored phi equals alpha K of the stored arrays for every method, and removal orders match phi.

External scores have no stored alpha and kernel; only their orders are checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from genrep_dist.core.attribution import Sign, ranking
from genrep_dist.diagnostics.context import CheckContext, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, largest_key
from genrep_dist.plan import direct_terms
from genrep_dist.workflow.attributions import stored_attribution

_SIGNS: tuple[Sign, ...] = ("negative", "positive")
_FLOAT64_ROUNDING = 1e-12
"""Relative to the largest score: sums of N C float64 terms in another order."""


def check(context: CheckContext) -> Iterator[Finding]:
    ids = context.worker.train.ids
    differences: dict[str, float] = {}
    artifacts = {}
    for method in context.plan.experiment.parsed_methods:
        name = method.name
        artifacts[name] = artifact = context.store.artifact("attribution", context.plan.keys.attribution(context.seed, method))
        phi = torch.from_numpy(artifact.read("phi"))
        direct = bool(direct_terms(context.plan.keys, context.plan.shape, method))
        # Of an ensemble's other networks nothing but the trained ones is stored.
        unknown = method.is_external or method.networks > 1
        expected = phi if unknown else stored_attribution(method, context.seed, context.worker, direct=direct)
        differences[name] = float((phi - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny))
        if differences[name] <= _FLOAT64_ROUNDING:
            for sign in _SIGNS:
                if not np.array_equal(artifact.read(f"order_{sign}"), ranking(phi, ids, len(ids), sign).numpy()):
                    differences[name] = float("inf")
    worst = largest_key(differences)
    yield compare(
        "scores",
        differences[worst],
        _FLOAT64_ROUNDING,
        f"{worst}, worst of {len(differences)} methods: largest difference between stored phi and alpha K of the stored arrays, relative "
        "to the largest phi (infinite: the removal order does not match phi); bound: float64 sums in another order",
        f"scores, importances or kernels were changed after the run: {rerun_text(context, artifacts[worst])}",
        seed=context.seed,
    )
