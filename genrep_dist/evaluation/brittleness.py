"""Brittleness: the smallest removal of a method's strongest supporters that flips the predicted class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.errors import StoreError
from genrep_dist.evaluation.deletion import IDENTITY, check_asked, replicate_means
from genrep_dist.evaluation.ledger_scores import scores
from genrep_dist.evaluation.metrics import POINTS_SCHEMA

POINT = ("seed", "method", "test_id")


def brittleness_table(asked: pl.DataFrame, ledger: pl.LazyFrame, num_outputs: int) -> pl.DataFrame:
    """One row a (seed, method, test_id), sorted by these: num_removed and fraction of its smallest removal that flips the class, flipped.

    ``asked`` as for :func:`genrep_dist.evaluation.deletion.deletion_table`, one sign a test point: the removals under which the
    explained logit should lose its class. ``num_outputs`` is C. The class of C = 1 is whether the logit is above 0, that of C > 1 the
    largest logit, the first of equal ones; of a removal with replicates it is read off their mean outputs. A removal flips when that
    class is not the original model's; removing nothing never does. Where none flips, num_removed and fraction are null.

    Raises what the deletion table does, and StoreError when a test point has two signs or not the fractions of all others.
    """
    asked = check_asked(asked)
    _check_design(asked)
    classes = pl.DataFrame({"output": range(num_outputs)}, schema={"output": pl.Int64})
    place = pl.col("output_position") // num_outputs * num_outputs + pl.col("output")
    cells = asked.join(classes, how="cross").with_columns(output_position=place)
    wanted = [cells.select(pl.col(key).alias("key"), "output_position") for key in ("key", "original_key")]
    found = scores(pl.concat(wanted), ledger)
    for key, score in (("key", "retrained"), ("original_key", "original")):
        cells = cells.join(found.rename({"key": key, "score": score}), on=[key, "output_position"], how="left", validate="m:1")
    cells = cells.sort(*IDENTITY, "output", "replicate")
    # Sorted, the outputs of one removal stand together: (removals, C).
    cell = (*IDENTITY, "output")
    removals = cells.unique(IDENTITY, keep="first", maintain_order=True)
    original = cells.unique(cell, keep="first", maintain_order=True)["original"].to_numpy().reshape(-1, num_outputs)
    retrained = replicate_means(cells, cell, "retrained").to_numpy().reshape(-1, num_outputs)
    changed = pl.Series("changed", _predicted(original) != _predicted(retrained), dtype=pl.Boolean)
    smallest = (
        removals.with_columns(changed)
        .filter(pl.col("changed") & (pl.col("num_removed") > 0))
        .sort(*POINT, "num_removed", "fraction")
        .unique(POINT, keep="first")
        .select(*POINT, "num_removed", "fraction")
    )
    points = removals.select(POINT).unique()
    return points.join(smallest, on=POINT, how="left").with_columns(flipped=pl.col("num_removed").is_not_null()).sort(POINT)


def brittleness_points(table: pl.DataFrame, largest: float) -> pl.DataFrame:
    """The points (by POINTS_SCHEMA, sorted) of the metrics brittleness_flipped, 0 or 1, and brittleness_removed, the fraction that flipped.

    ``table`` as :func:`brittleness_table` makes it; ``largest`` is the largest declared fraction, which counts where none flipped.
    """
    flipped = table.select(*POINT, pl.lit("brittleness_flipped").alias("metric"), pl.col("flipped").cast(pl.Float64).alias("value"))
    removed = table.select(*POINT, pl.lit("brittleness_removed").alias("metric"), pl.col("fraction").fill_null(largest).alias("value"))
    return pl.concat([flipped, removed]).select(list(POINTS_SCHEMA)).sort(list(POINTS_SCHEMA)[:-1])


def _predicted(outputs: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Classes (rows,) of outputs (rows, C)."""
    return outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)


def _check_design(asked: pl.DataFrame) -> None:
    designs = asked.group_by(POINT).agg(pl.col("sign").n_unique(), pl.col("fraction").unique().sort()).sort(POINT)
    # Over other fractions the smallest that flips is another number under the same name.
    uneven = designs.filter((pl.col("sign") != 1) | (pl.col("fraction") != pl.col("fraction").first()))
    if uneven.height:
        raise StoreError(
            "a test point's removals are not those of the others",
            where="the table of asked removals, brittleness",
            expected=f"one sign for each (seed, method, test point), and the fractions {designs['fraction'][0].to_list()}",
            got=str(uneven.row(0, named=True)),
        )
