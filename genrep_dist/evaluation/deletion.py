"""DEL(x, k): how much the explained score changes when the named training samples are really left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.evaluation.ledger_scores import scores

DELETION_SCHEMA = pa.schema(
    [
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("method", pa.string(), nullable=False),
        pa.field("test_id", pa.int64(), nullable=False),
        pa.field("sign", pa.string(), nullable=False),
        pa.field("fraction", pa.float64(), nullable=False),
        pa.field("num_removed", pa.int64(), nullable=False),
        pa.field("score_original", pa.float64(), nullable=False),
        pa.field("score_retrained", pa.float64(), nullable=False),
        pa.field("delta", pa.float64(), nullable=False),
    ],
    metadata={"genrep.table": "deletion", "genrep.version": "1"},
)

SIGNS = ("negative", "positive")
IDENTITY = ("seed", "method", "test_id", "sign", "fraction")
"""The columns that name a row of the deletion table, in its sort order."""

ASKED_SCHEMA: dict[str, type[pl.DataType]] = {
    "seed": pl.Int64,
    "method": pl.String,
    "test_id": pl.Int64,
    "output_position": pl.Int64,
    "sign": pl.String,
    "fraction": pl.Float64,
    "replicate": pl.Int64,
    "num_removed": pl.Int64,
    "key": pl.String,
    "original_key": pl.String,
}
"""What is asked of the ledger: one row a removal and replicate (0, 1, ...), each its own retrained model."""


def deletion_table(asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """One row a (seed, method, test point, sign, fraction), sorted by these, with the columns of :data:`DELETION_SCHEMA`.

    ``delta`` = ``score_retrained`` - ``score_original``, in float64, of the declared target f at the test point; ``score_retrained`` is
    the mean over the replicates.

    ``asked`` has the columns of :data:`ASKED_SCHEMA`, where ``output_position`` = test row * C + class points into the ledger's
    flattened outputs; ``ledger`` is what :func:`genrep_dist.evaluation.ledger_scores.scores` takes.

    Raises what that raises, and StoreError when ``asked`` is malformed (:func:`check_asked`).
    """
    each = _each_replicate(asked, ledger)
    rows = each.unique(IDENTITY, keep="first", maintain_order=True)
    return (
        rows.with_columns(score_retrained=replicate_means(each, IDENTITY, "score_retrained"))
        .with_columns(delta=pl.col("score_retrained") - pl.col("score_original"))
        .select(DELETION_SCHEMA.names)
    )


def replicates_table(asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """The spread behind :func:`deletion_table`: seed, method, test_id, sign, fraction, replicate, num_removed, score_retrained, delta.

    One row a replicate, sorted by the first six columns. Arguments and errors as there.
    """
    each = _each_replicate(asked, ledger).with_columns(delta=pl.col("score_retrained") - pl.col("score_original"))
    return each.select(*IDENTITY, "replicate", "num_removed", "score_retrained", "delta")


def replicate_means(each: pl.DataFrame, group: Sequence[str], value: str) -> pl.Series:
    """Mean of ``value`` in each group of equal ``group`` columns, (number of groups,) float64, in the order of the rows.

    Groups are runs of rows. Summed one after the other in that order: the last bit may not depend on who adds first.
    """
    run = each.select(pl.struct(group).rle_id()).to_series().to_numpy()
    return pl.Series(value, np.bincount(run, weights=each[value].to_numpy()) / np.bincount(run), dtype=pl.Float64)


def _each_replicate(asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """``asked`` with ``score_original`` and ``score_retrained``, sorted by identity and replicate."""
    asked = check_asked(asked)
    originals = asked.select(pl.col("original_key").alias("key"), "output_position")
    found = scores(pl.concat([asked.select("key", "output_position"), originals]), ledger)
    original = found.rename({"key": "original_key", "score": "score_original"})
    retrained = found.rename({"score": "score_retrained"})
    return (
        asked.join(original, on=["original_key", "output_position"], how="left", validate="m:1")
        .join(retrained, on=["key", "output_position"], how="left", validate="m:1")
        .sort(*IDENTITY, "replicate")
    )


def deletion_arrow(deletion: pl.DataFrame) -> pa.Table:
    """The deletion table as Arrow, with :data:`DELETION_SCHEMA` and its metadata. CorruptError when it does not fit the schema."""
    try:
        return deletion.select(DELETION_SCHEMA.names).to_arrow().cast(DELETION_SCHEMA)
    except (pa.ArrowInvalid, ValueError, pl.exceptions.ColumnNotFoundError) as error:
        raise CorruptError(
            "this is no deletion table", expected=f"non-null columns {', '.join(DELETION_SCHEMA.names)}", got=str(error)
        ) from error


def check_asked(asked: pl.DataFrame) -> pl.DataFrame:
    """``asked`` with exactly the columns and types of :data:`ASKED_SCHEMA`, or StoreError.

    A removal has the replicates 0 .. r-1, all removals the same r; removing nothing is one model, replicate 0. The replicates of a removal
    are different models, asked for one output and compared with one original.
    """
    where = "the table of asked removals"
    absent = [name for name in ASKED_SCHEMA if name not in asked.columns]
    if absent:
        raise StoreError("columns are missing", where=where, expected=", ".join(ASKED_SCHEMA), got=f"no {', '.join(absent)}")
    try:
        asked = asked.select(pl.col(name).cast(dtype) for name, dtype in ASKED_SCHEMA.items())
    except pl.exceptions.PolarsError as error:
        raise StoreError("a column has a wrong type", where=where, expected=str(ASKED_SCHEMA), got=str(error)) from error
    nulls = [column.name for column in asked if column.null_count()]
    if nulls:
        raise StoreError("values are missing", where=where, expected="no null", got=f"nulls in {', '.join(nulls)}")
    unknown = asked.filter(~pl.col("sign").is_in(SIGNS))
    if unknown.height:
        raise StoreError("unknown sign", where=where, expected=" or ".join(SIGNS), got=repr(unknown["sign"].min()))
    one_each = (*IDENTITY, "replicate")
    # A row that counts twice would weigh twice in every mean.
    twice = asked.filter(asked.select(one_each).is_duplicated())
    _refuse(twice, "a removal is asked for twice", f"one row a ({', '.join(one_each)})", one_each)
    _check_replicates(asked)
    return asked


def _check_replicates(asked: pl.DataFrame) -> None:
    same = ("output_position", "num_removed", "original_key")
    removals = asked.group_by(IDENTITY).agg(
        replicates=pl.len(),
        last=pl.col("replicate").max(),
        first=pl.col("replicate").min(),
        agree=pl.all_horizontal(pl.col(name).n_unique() == 1 for name in same),
        models=pl.col("key").n_unique(),
        nothing=(pl.col("num_removed") == 0).all(),
    )
    _refuse(removals.filter(~pl.col("agree")), "replicates of one removal disagree", f"one {', '.join(same)} for all of them")
    # Rows are distinct, so these two make the replicates 0 .. r-1.
    holes = removals.filter((pl.col("first") != 0) | (pl.col("last") + 1 != pl.col("replicates")))
    _refuse(holes, "replicates are missing", "the replicates 0 .. r-1 of a removal", (*IDENTITY, "first", "last", "replicates"))
    # The mean of one model with itself would pass for the mean of several.
    repeated = removals.filter(pl.col("models") < pl.col("replicates"))
    _refuse(repeated, "replicates of one removal are one model", "a key of its own for each replicate", (*IDENTITY, "models", "replicates"))
    often = max(removals.filter(~pl.col("nothing"))["replicates"].to_list(), default=1)
    due = pl.when("nothing").then(1).otherwise(often)
    expected = f"{often} replicates of each removal, as the largest has, and 1 where nothing is removed"
    _refuse(removals.filter(pl.col("replicates") != due), "removals differ in their replicates", expected, (*IDENTITY, "replicates"))


def _refuse(rows: pl.DataFrame, what: str, expected: str, shown: Sequence[str] = IDENTITY) -> None:
    if rows.height:
        got = str(rows.sort(shown).select(shown).row(0, named=True))
        raise StoreError(what, where="the table of asked removals", expected=expected, got=got)
