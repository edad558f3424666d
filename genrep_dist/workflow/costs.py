"""What a run has cost, from the store: trained models, and seconds of one worker."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from genrep_dist.core.methods import Method
from genrep_dist.plan import Plan, derived_kernel, direct_terms, gram_base, is_streamed
from genrep_dist.store import Store
from genrep_dist.workflow.strongest import streamed_methods

COSTS_SCHEMA: dict[str, type[pl.DataType]] = {
    "method": pl.String,
    "retrainings": pl.Int64,
    "retraining_seconds": pl.Float64,
    "explanation_seconds": pl.Float64,
}


def model_costs(table: pl.DataFrame, ledger: pl.LazyFrame) -> dict[str, float]:
    """Models ``asked`` for, distinct retrainings (``unique``) behind them, ``originals``; one worker's training ``seconds``.

    ``table`` as :mod:`genrep_dist.workflow.requests` makes it.
    """
    originals = table.select(key="original_key", num_removed=pl.lit(0, pl.Int64))
    models = _with_seconds(pl.concat([table.select("key", "num_removed"), originals]).unique("key"), ledger)
    return {
        "asked": table.height,
        "unique": models.filter(pl.col("num_removed") > 0).height,
        "originals": models.filter(pl.col("num_removed") == 0).height,
        "seconds": float(models["seconds"].sum()),
        "seconds_per_model": float(models["seconds"].mean() or 0.0),  # type: ignore[arg-type]
    }


def method_costs(plan: Plan, store: Store, table: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """:data:`COSTS_SCHEMA`, one row a method: its distinct retrainings, one worker's seconds for them, and for its scores of all seeds.

    What several methods share counts for each; training the originals counts for none.
    """
    requested = table.filter(pl.col("method").is_not_null() & (pl.col("num_removed") > 0)).select("method", "key").unique()
    seconds = _with_seconds(requested, ledger)
    rows = []
    for name, method in zip(plan.experiment.methods, plan.experiment.parsed_methods, strict=True):
        mine = seconds.filter(pl.col("method") == name)["seconds"]
        parts = [part for seed in plan.experiment.seeds for part in _artifacts(plan, method, seed)]
        explained = sum(store.artifact(kind, key).seconds() for kind, key in parts)
        rows.append((name, len(mine), float(mine.sum()), float(explained)))
    return pl.DataFrame(rows, schema=COSTS_SCHEMA, orient="row")


def _with_seconds(models: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    # A model that two tasks trained has two rows; which one's seconds count must not depend on their order.
    spent = ledger.select("key", "seconds").group_by("key").agg(pl.col("seconds").min())
    return models.lazy().join(spent, on="key", how="left").collect()


def _artifacts(plan: Plan, method: Method, seed: int) -> Iterator[tuple[str, str]]:
    """(kind, key) of the artifacts that one method's scores are computed from, without the trained model."""
    keys = plan.keys
    yield "attribution", keys.attribution(seed, method)
    if method.averages_masks:
        return
    streamed = is_streamed(keys, method)
    if streamed:
        yield "strongest", keys.strongest(seed, streamed_methods(plan)[method.kernel])
    terms = [] if streamed else direct_terms(keys, plan.shape, method)
    yield from (("term", keys.term(seed, *term)) for term in terms)
    if terms:
        return
    derived = derived_kernel(keys, method.kernel, plan.shape) if method.has_kernel else None
    base = None if derived is None else gram_base(derived)
    for epoch in keys.method_epochs(method):
        if not streamed:
            yield "kernel", keys.kernel(seed, method.kernel, epoch)
        if base is not None:
            yield "kernel", keys.kernel(seed, base, epoch)
        if method.needs_gram:
            yield method.importance, keys.solved(method.importance, seed, method.kernel, epoch)
        kernel = base or method.kernel
        if base is not None or (method.needs_gram and (method.importance, method.kernel, epoch) not in plan.needs.primal):
            yield "gram", keys.gram(seed, kernel, epoch)
        if (kernel, epoch) in plan.stored_features:
            yield "features", keys.features(seed, kernel, epoch)
