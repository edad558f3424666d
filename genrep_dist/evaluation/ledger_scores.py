"""Outputs of trained models, read from the ledger."""

from __future__ import annotations

import polars as pl

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.store.compaction import DUPLICATE_TOLERANCE


def ledger_scores(wanted: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """One row (key, output_position, score float64) for each distinct row (key, output_position) of ``wanted``, in no order.

    ``output_position`` = test row * C + class points into the ledger's flattened outputs. ``ledger`` has ``key`` and ``outputs`` (list of
    floats, (all test rows, C) row-major); other columns are ignored, duplicated rows are allowed. The join streams through the ledger: only
    the wanted numbers are held in memory.

    Raises NotCommittedError when a key is not in the ledger (missing is never zero), CorruptError when rows of one key disagree or are
    too short, NonFiniteError for a NaN or Inf, and StoreError for a null or a negative position in ``wanted``.
    """
    places = _places(wanted)
    where = "the ledger of retrainings"
    found = (
        ledger.select("key", "outputs")
        .join(places.lazy(), on="key", how="inner")
        .select(
            "key",
            "output_position",
            score=pl.col("outputs").list.gather(pl.col("output_position"), null_on_oob=True).cast(pl.List(pl.Float64)),
        )
        .explode("output_position", "score")
        .group_by("key", "output_position")
        .agg(
            # Of several rows the smallest value is kept, so that the result does not depend on their order.
            pl.col("score").min(),
            pl.col("score").max().alias("largest"),
            pl.col("score").is_null().any().alias("absent"),
            pl.col("score").is_finite().all().alias("finite"),
        )
        .collect(engine="streaming")
    )
    missing = sorted(set(places["key"]) - set(found["key"]))
    if missing:
        raise NotCommittedError(
            f"{len(missing)} of {places.height} retrained models are not in the ledger",
            where=where,
            expected="a row for every requested model",
            got=f"none for key {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            remedy="run the experiment again: only what is missing is trained",
        )
    _refuse(found.filter("absent"), CorruptError, "a model has no output at a requested position", where, "a number at this position")
    _refuse(found.filter(~pl.col("finite")), NonFiniteError, "a retrained model's output is not finite", where, "a finite number")
    apart = (pl.col("largest") - pl.col("score")) > DUPLICATE_TOLERANCE * (1 + pl.col("largest").abs())
    _refuse(found.filter(apart), CorruptError, "two trainings of one removed set disagree", where, f"equal to {DUPLICATE_TOLERANCE}")
    return found.select("key", "output_position", "score")


def _places(wanted: pl.DataFrame) -> pl.DataFrame:
    """(key, list of its distinct positions), one row a key: a model with many wanted outputs is read once."""
    where = "the requested outputs"
    pairs = wanted.select(pl.col("key").cast(pl.String), pl.col("output_position").cast(pl.Int64)).unique()
    nulls = [column.name for column in pairs if column.null_count()]
    if nulls:
        raise StoreError("values are missing", where=where, expected="no null", got=f"nulls in {', '.join(nulls)}")
    # A negative position would index from the end.
    outside = pairs.filter(pl.col("output_position") < 0)
    if outside.height:
        lowest = outside["output_position"].min()
        raise StoreError("a negative output position", where=where, expected="test row * C + class", got=str(lowest))
    return pairs.group_by("key").agg("output_position")


def _refuse(rows: pl.DataFrame, kind: type[StoreError | NonFiniteError], what: str, where: str, expected: str) -> None:
    if rows.height:
        key, position, low, high = rows.sort("key", "output_position").select("key", "output_position", "score", "largest").row(0)
        values = f"{low}" if low == high or low is None else f"{low} and {high}"
        raise kind(
            what,
            where=where,
            expected=expected,
            got=f"{values} at output position {position} of key {key} ({rows.height} such outputs)",
            remedy="the ledger part that holds this key is damaged or of another run: move it away and run again",
        )
