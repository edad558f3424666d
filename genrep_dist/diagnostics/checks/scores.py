"""The first seed's stored phi equals alpha K of the stored arrays for every method, and removal orders match phi.

External scores have no stored alpha and kernel; only their orders are checked. Where only the strongest scores are kept, they equal those
that are computed or merged again, and the first span of training rows is computed again from the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from genrep_dist.core.attribution import Sign, ranking
from genrep_dist.core.methods import Method
from genrep_dist.core.strongest import StrongestScores
from genrep_dist.diagnostics.context import CheckContext, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, largest_key
from genrep_dist.plan import direct_terms, is_streamed
from genrep_dist.workflow.attributions import AttributionUnit, attribution_unit, stored_attribution, strongest_scores
from genrep_dist.workflow.strongest import read_spans, span_scores, streamed_methods, strongest_units
from genrep_dist.workflow.targets import group_means

_SIGNS: tuple[Sign, ...] = ("negative", "positive")
_TINY = torch.finfo(torch.float64).tiny
_FLOAT64_ROUNDING = 1e-12
"""Relative to the largest score: sums of N C float64 terms in another order."""


def check(context: CheckContext) -> Iterator[Finding]:
    ids = context.worker.train.ids
    differences: dict[str, float] = {}
    artifacts = {}
    for method in context.plan.experiment.parsed_methods:
        name = method.name
        if context.plan.top is not None:
            artifacts[name] = context.store.artifact("attribution", context.plan.keys.attribution(context.seed, method))
            unknown = method.is_external or (method.has_other_models and not is_streamed(context.plan.keys, method))
            differences[name] = 0.0 if unknown else _strongest_difference(context, method)
            continue
        artifacts[name] = artifact = context.store.artifact("attribution", context.plan.keys.attribution(context.seed, method))
        phi = torch.from_numpy(artifact.read("phi"))
        direct = bool(direct_terms(context.plan.keys, context.plan.shape, method))
        # Of an ensemble's other networks nothing but the trained ones is stored.
        unknown = method.is_external or method.has_other_models
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


def _strongest_difference(context: CheckContext, method: Method) -> float:
    """Of kept scores from those that are found again, relative to the largest; infinite where the samples are others."""
    plan, worker, seed = context.plan, context.worker, context.seed
    unit = attribution_unit(plan, seed, method)
    artifact = context.store.artifact("attribution", plan.keys.attribution(seed, method))
    found, worst = strongest_scores(unit, method, worker), 0.0
    for sign in _SIGNS:
        again = found.strongest(sign)
        if not np.array_equal(artifact.read(f"order_{sign}"), again.ids.numpy()):
            return float("inf")
        scores = torch.from_numpy(artifact.read(f"scores_{sign}"))
        worst = max(worst, float((scores - again.scores).abs().max() / again.scores.abs().max().clamp(min=_TINY)))
    return max(worst, _span_difference(context, unit)) if unit.merged else worst


def _span_difference(context: CheckContext, unit: AttributionUnit) -> float:
    """Of the first span's strongest scores from those computed again, relative to the largest; infinite where the samples are others."""
    plan, worker, seed = context.plan, context.worker, context.seed
    kernel = plan.experiment.method(unit.method).kernel
    first = strongest_units(plan, seed, kernel, streamed_methods(plan)[kernel])[0]
    phi = group_means(span_scores(first, worker, worker.test_points(seed))[unit.merged.index(unit.method)], plan.keys.test_groups(seed))
    again = StrongestScores(phi.shape[1], unit.top)
    again.add(phi, worker.train.ids[: len(phi)])
    stored, worst = StrongestScores.unpacked(next(read_spans(worker, seed, unit.merged, unit.method))), 0.0
    for sign in _SIGNS:
        kept, expected = stored.strongest(sign), again.strongest(sign)
        if not torch.equal(kept.ids, expected.ids):
            return float("inf")
        worst = max(worst, float((kept.scores - expected.scores).abs().max() / expected.scores.abs().max().clamp(min=_TINY)))
    return worst
