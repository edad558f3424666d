"""External scores named exactly the experiment's models when they were read."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text


def check(context: CheckContext) -> Iterator[Finding]:
    keys, experiment = context.plan.keys, context.plan.experiment
    manifests = {
        (name, seed): context.store.artifact("attribution", keys.attribution(seed, experiment.method(name))).manifest()
        for name in experiment.external_methods
        for seed in context.seeds
    }
    if not manifests:
        return
    unverified = [place for place, manifest in manifests.items() if not manifest["verified"]]
    yield compare(
        "external scores",
        len(unverified),
        0,
        f"of {count_text(len(manifests), 'table')} of external scores, those that do not name the model that they belong to"
        + (f", first {unverified[0][0]}, seed {unverified[0][1]}" if unverified else ""),
        "export the problem, score exactly those models, and save the scores with their identity",
        otherwise="amber",
    )
