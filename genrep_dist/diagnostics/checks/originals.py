"""Ledger rows with nothing removed hold the outputs of the original models, to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from genrep_dist.diagnostics.context import CheckContext, recompute_text
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key, nan_as_inf
from genrep_dist.diagnostics.ledger_rows import largest_difference, ledger_rows


def check(context: CheckContext) -> Iterator[Finding]:
    seeds = {context.plan.keys.retraining(seed, (), "same"): seed for seed in context.seeds}
    rows = ledger_rows(context, pl.DataFrame({"key": list(seeds)}), "key", "outputs")
    found: dict[int, list[float]] = {seed: [] for seed in context.seeds}
    for key, outputs in rows.iter_rows():
        stored = context.train_artifact(seeds[key]).read("outputs_test").astype(np.float64).ravel()
        found[seeds[key]].append(largest_difference(np.asarray(outputs, dtype=np.float64), stored))
    differences = {seed: max(numbers, key=nan_as_inf, default=float("inf")) for seed, numbers in found.items()}
    seed = largest_key(differences)
    yield compare(
        "originals",
        differences[seed],
        0,
        "largest difference between the ledger's outputs with nothing removed and those of the original models, "
        f"{count_text(rows.height, 'row')} of {count_text(len(context.seeds), 'seed')}; bound: both were written by one training",
        "the ledger or this seed's original model was changed: "
        + recompute_text(context, f"the folder {context.train_artifact(seed).path}", "the ledger's part with this key"),
        seed=seed,
    )
