"""The ledger rows behind a run's results."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.workflow.requests import read_requests


def requested(context: CheckContext) -> pl.DataFrame:
    """The run's recorded retraining requests."""
    return read_requests(context.plan, context.store).collect()


def needed_keys(context: CheckContext) -> pl.DataFrame:
    """Keys of all trained models behind the published results, originals included: one column ``key``, sorted."""
    requests = requested(context)
    return pl.concat([requests.select("key"), requests.select(key="original_key")]).unique().sort("key")


def ledger_rows(context: CheckContext, keys: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """``columns`` of the ledger's rows with one of ``keys``."""
    ledger = context.store.ledger(context.plan.keys.training).scan()
    return ledger.select(columns).join(keys.lazy(), on="key", how="semi").collect(engine="streaming")


def largest_difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Largest absolute difference; infinite for different shapes."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0))
