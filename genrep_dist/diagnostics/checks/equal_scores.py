"""Scores tell the samples of the largest removal apart: samples of equal scores are removed in the order of their ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key
from genrep_dist.evaluation.removals import largest_count


def check(context: CheckContext) -> Iterator[Finding]:
    experiment, keys = context.plan.experiment, context.plan.keys
    count = largest_count(experiment.deletion, context.plan.shape.num_train)
    if count < 2:
        return
    rows = np.argsort(context.worker.train.ids.cpu().numpy())
    sorted_ids = context.worker.train.ids.cpu().numpy()[rows]
    tied: dict[str, list[bool]] = {method.name: [] for method in experiment.parsed_methods}
    for method in experiment.parsed_methods:
        for seed in context.seeds:
            artifact = context.store.artifact("attribution", keys.attribution(seed, method))
            for sign in experiment.deletion.signs:
                if context.plan.top is None:
                    removed = rows[np.searchsorted(sorted_ids, artifact.read(f"order_{sign}")[:, :count])]
                    scores = np.take_along_axis(artifact.read("phi").T, removed, axis=1)
                else:
                    scores = artifact.read(f"scores_{sign}")[:, :count]
                tied[method.name] += ((scores == scores[:, -1:]).sum(axis=1) > count / 2).tolist()
    shares = {name: sum(points) / len(points) for name, points in tied.items()}
    worst = largest_key(shares)
    yield compare(
        "equal scores",
        shares[worst],
        0,
        f"{worst}, worst of {count_text(len(shares), 'method')}: share of the test points for which more than half of the largest removal, "
        f"{count_text(count, 'sample')}, has one and the same score; these samples are removed in the order of their ids",
        "read the numbers of this method as those of an arbitrary removal; scores that are all zero often come from a fault in their code",
        otherwise="amber",
    )
