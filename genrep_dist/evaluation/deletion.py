"""DEL(x, k): how much the explained score changes when the named training samples are really left out."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError

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

DUPLICATE_TOLERANCE = 1e-3
"""Two ledger rows of one key may differ by this much (absolute, and relative to the score): rounding of different machines."""

ASKED_SCHEMA: dict[str, type[pl.DataType]] = {
    "seed": pl.Int64,
    "method": pl.String,
    "test_id": pl.Int64,
    "output_position": pl.Int64,
    "sign": pl.String,
    "fraction": pl.Float64,
    "num_removed": pl.Int64,
    "key": pl.String,
    "original_key": pl.String,
}


def deletion_table(asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """One row a (seed, method, test point, sign, fraction), sorted by these, with the columns of :data:`DELETION_SCHEMA`.

    ``delta`` = ``score_retrained`` - ``score_original``, in float64, of the declared target f at the test point.

    ``asked`` has the columns seed, method, test_id, output_position, sign, fraction, num_removed, key and original_key, where
    ``output_position`` = test row * C + class points into the ledger's flattened outputs. ``ledger`` has ``key`` and ``outputs``
    (list of float32, (all test rows, C) row-major); other columns are ignored and duplicated rows are harmless.

    Only the asked numbers are kept in memory, never the outputs of all models: the join streams through the ledger.

    Raises NotCommittedError when a key is not in the ledger (missing is never zero), CorruptError when rows of one key
    disagree or are too short, NonFiniteError for a NaN or Inf, and StoreError when ``asked`` itself is malformed.
    """
    asked = _checked(asked)
    scores = _scores(asked, ledger)
    original = scores.rename({"key": "original_key", "score": "score_original"})
    retrained = scores.rename({"score": "score_retrained"})
    return (
        asked.join(original, on=["original_key", "output_position"], how="left", validate="m:1")
        .join(retrained, on=["key", "output_position"], how="left", validate="m:1")
        .with_columns(delta=pl.col("score_retrained") - pl.col("score_original"))
        .select(DELETION_SCHEMA.names)
        .sort(IDENTITY)
    )


def deletion_arrow(deletion: pl.DataFrame) -> pa.Table:
    """The deletion table as Arrow, with :data:`DELETION_SCHEMA` and its metadata. CorruptError when it does not fit the schema."""
    try:
        return deletion.select(DELETION_SCHEMA.names).to_arrow().cast(DELETION_SCHEMA)
    except (pa.ArrowInvalid, ValueError, pl.exceptions.ColumnNotFoundError) as error:
        raise CorruptError(
            "this is no deletion table", expected=f"non-null columns {', '.join(DELETION_SCHEMA.names)}", got=str(error)
        ) from error


def _checked(asked: pl.DataFrame) -> pl.DataFrame:
    """``asked`` with exactly its declared columns and types, or StoreError."""
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
    outside = asked.filter(pl.col("output_position") < 0)
    if outside.height:
        raise StoreError(
            "a negative output position", where=where, expected="test row * C + class", got=str(outside["output_position"].min())
        )
    twice = asked.filter(asked.select(IDENTITY).is_duplicated()).sort(IDENTITY)
    if twice.height:
        # A row that counts twice would weigh twice in every mean.
        raise StoreError(
            "a removal is asked for twice",
            where=where,
            expected=f"one row a ({', '.join(IDENTITY)})",
            got=str(dict(zip(IDENTITY, twice.select(IDENTITY).row(0), strict=True))),
        )
    return asked


def _scores(asked: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """(key, output_position, score float64) of every model and output that ``asked`` needs, one row each."""
    where = "the ledger of retrainings"
    pairs = pl.concat(
        [asked.select("key", "output_position"), asked.select(pl.col("original_key").alias("key"), "output_position")]
    ).unique()
    score = pl.col("outputs").list.get(pl.col("output_position"), null_on_oob=True).cast(pl.Float64)
    found = (
        ledger.select("key", "outputs")
        .join(pairs.lazy(), on="key", how="inner")
        .select("key", "output_position", score.alias("score"))
        .group_by("key", "output_position")
        .agg(
            # Which of several equal rows is kept must not depend on their order: the smallest.
            pl.col("score").min(),
            pl.col("score").max().alias("largest"),
            pl.col("score").is_null().any().alias("absent"),
            pl.col("score").is_finite().all().alias("finite"),
        )
        .collect(engine="streaming")
    )
    missing = sorted(set(pairs["key"]) - set(found["key"]))
    if missing:
        raise NotCommittedError(
            f"{len(missing)} of {pairs['key'].n_unique()} retrained models are not in the ledger",
            where=where,
            expected="a row for every removed set that a method asks for",
            got=f"none for key {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            remedy="run the experiment again: only what is missing is trained",
        )
    _refuse(found.filter("absent"), CorruptError, "a model has no output where one is asked for", where, "a number at the asked position")
    _refuse(found.filter(~pl.col("finite")), NonFiniteError, "a retrained model's output is not finite", where, "a finite number")
    apart = (pl.col("largest") - pl.col("score")) > DUPLICATE_TOLERANCE * (1 + pl.col("largest").abs())
    _refuse(found.filter(apart), CorruptError, "two trainings of one removed set disagree", where, f"equal to {DUPLICATE_TOLERANCE}")
    return found.select("key", "output_position", "score")


def _refuse(rows: pl.DataFrame, kind: type[StoreError | NonFiniteError], what: str, where: str, expected: str) -> None:
    if rows.height:
        key, position, low, high = rows.sort("key", "output_position").select("key", "output_position", "score", "largest").row(0)
        values = f"{low}" if low == high or low is None else f"{low} and {high}"
        raise kind(
            what,
            where=where,
            expected=expected,
            got=f"{values} at output position {position} of key {key} ({rows.height} such outputs)",
            remedy="the ledger part that holds this key is damaged or foreign: move it away and run again",
        )
