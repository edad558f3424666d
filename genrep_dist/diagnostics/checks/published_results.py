"""The published deletion table and points of all metrics equal those computed from the ledger and the stored scores now."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, nan_as_inf
from genrep_dist.diagnostics.ledger_rows import largest_difference
from genrep_dist.store.compaction import DUPLICATE_TOLERANCE

_DELETION = ("seed", "method", "test_id", "sign", "fraction")
"""Columns that identify a row of the deletion table."""


def check(context: CheckContext) -> Iterator[Finding]:
    published = context.run.deletion().collect().sort(_DELETION)
    tables = context.run.judge()
    now = tables["deletion"]
    points = context.run.points().collect()
    places = [name for name in points.columns if name != "value"]
    if published.select(*_DELETION, "num_removed").equals(now.select(*_DELETION, "num_removed")) and points.select(places).equals(
        tables.points.select(places)
    ):
        pairs = [(published[name].to_numpy(), now[name].to_numpy()) for name in ("score_original", "score_retrained", "delta")]
        size = 1 + now["score_retrained"].abs().to_numpy()
        number = max((largest_difference(then / size, again / size) for then, again in pairs), key=nan_as_inf)
        number = max(number, largest_difference(points["value"].to_numpy(), tables.points["value"].to_numpy()), key=nan_as_inf)
    else:
        number = float("inf")
    yield compare(
        "published results",
        number,
        DUPLICATE_TOLERANCE,
        f"largest difference between the published tables and those computed from the ledger now, of {now.height:,} deletions (relative "
        f"to 1 + |score|) and {points.height:,} points of {len(context.plan.experiment.metric_names)} metrics; bound: the allowed "
        "difference between two trainings of one removed set on different machines",
        "the ledger or the tables were changed after the run: run the experiment again in a new store, or find the changed part",
    )
