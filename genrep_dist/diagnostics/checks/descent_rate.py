"""The largest learning rate of kernel gradient descent against the largest stable one, as certified."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.core.importances.descent import KernelDescent
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each gram, over all seeds."""
    for kernel, epoch in context.solved(KernelDescent):
        certificates = {s: context.solved_artifact(KernelDescent.name, s, kernel, epoch).manifest()["certificate"] for s in context.seeds}
        ratios = {seed: float(c["largest_rate"]) / float(c["largest_stable_rate"]) for seed, c in certificates.items()}
        seed = largest_key(ratios)
        yield compare(
            "descent rate",
            ratios[seed],
            1.0,
            f"{kernel} at epoch {epoch}: largest learning rate relative to the largest stable one, worst of "
            f"{count_text(len(ratios), 'seed')}; bound: above it, a step over all samples moves away from the minimum",
            "lower descent.learning_rate",
            seed=seed,
            otherwise="amber",
        )
