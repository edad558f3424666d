"""Every removal that the stored scores need is recorded as a request and has a row, and rows match their keys."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from genrep_dist.diagnostics.context import CheckContext, recompute_text
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.diagnostics.ledger_rows import ledger_rows, needed_keys, requested
from genrep_dist.workflow.requests import retrain_requests


def check(context: CheckContext) -> Iterator[Finding]:
    keys = context.plan.keys
    requests = requested(context)
    expected = retrain_requests(context.plan, context.store, context.run.train.ids.numpy(), context.run.test.ids.numpy()).table
    different = requests.height if requests.height != expected.height else _num_different_rows(requests, expected)
    needed = needed_keys(context)
    rows = ledger_rows(context, needed, "key", "seed", "policy", "replicate")
    changes = context.store.ledger(keys.training).changes(needed["key"])
    missing = sorted(set(needed["key"]) - set(rows["key"]))
    wrong_key = [
        row["key"]
        for row in rows.unique("key").iter_rows(named=True)
        if keys.retraining(row["seed"], changes[row["key"]], row["policy"], row["replicate"]) != row["key"]
    ]
    example = f"; first {(missing or wrong_key)[0]}" if missing or wrong_key else ""
    yield compare(
        "ledger",
        len(missing) + len(wrong_key) + different,
        0,
        f"faults in {len(needed):,} requested models: {len(missing)} without a row, {len(wrong_key)} whose removed set does not give their "
        f"key, {different} requested removals that differ from those of the stored scores{example}",
        f"missing models are trained when you {recompute_text(context)}; move parts of the ledger with wrong rows out of the store before",
    )


def _num_different_rows(frame: pl.DataFrame, other: pl.DataFrame) -> int:
    """Number of rows in which two frames of one schema differ."""
    differs = frame.select(pl.any_horizontal(pl.col(name).ne_missing(other[name]) for name in frame.columns)).to_series()
    return int(differs.sum())
