"""Removals in the order of a method's scores: their requests, and DEL(x, k), the change of the explained output after retraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from genrep_dist.config.metrics import RequestCount
from genrep_dist.config.sections import RemovalSection, RetrainSection
from genrep_dist.core.policies import is_fresh, is_rebatched
from genrep_dist.errors import PlanError, StoreError
from genrep_dist.evaluation.ledger_scores import ledger_scores
from genrep_dist.evaluation.metrics.base import REQUEST_SCHEMA, RetrainRequest, SeedData, Sign

SIGNS = ("negative", "positive")
REMOVAL_COLUMNS = ("seed", "method", "test_id", "sign", "fraction")
"""The columns that identify a removal, in the sort order of the deletion table."""

REMOVAL_REQUESTS = {name: dtype for name, dtype in REQUEST_SCHEMA.items() if name not in ("metric", "subset")}
"""The columns of the requests of a removal: one row a removal and replicate (0, 1, ...), each a retrained model of its own."""

_WHERE = "the retrain requests"


def removal_requests(section: RemovalSection, data: SeedData, method: str, point: int, sign: Sign) -> Iterator[RetrainRequest]:
    """Requests for the removals of ``section`` for the seed's test point number ``point``, in the method's order of that sign."""
    test_point, order = data.points[point], data.removal_order(method, sign)[point]
    for fraction, count in section.removals(len(data.train_ids)):
        for replicate in range(section.replicates if count else 1):
            yield RetrainRequest(
                order[:count],
                section.retrain,
                replicate,
                method=method,
                test_id=test_point.test_id,
                output_position=test_point.output_position,
                sign=sign,
                fraction=fraction,
            )


def count_removals(section: RemovalSection, num_points: int, num_signs: int, num_train: int) -> RequestCount:
    """Models that :func:`removal_requests` requests for each method and seed."""
    removals = section.removals(num_train)
    removing = sum(count > 0 for _, count in removals)
    points = num_points * num_signs
    return RequestCount(per_method=points * removing * section.replicates, originals_per_method=points * (len(removals) - removing))


def check_removals(name: str, section: RemovalSection, num_train: int) -> None:
    """Raise PlanError if a removal of the section ``name`` would take the whole training set, or all its shares remove no sample.

    Where 0 alone is declared, nothing is meant to be removed.
    """
    largest = largest_count(section, num_train)
    if largest == 0 and section.counts is None and max(section.fractions) > 0:
        raise PlanError(
            "the declared shares remove no sample, so every number of this metric would be 0",
            where=f"{name}.fractions",
            expected=f"a share that removes at least one of {num_train} training samples: {smallest_share_text(num_train)}",
            got=", ".join(f"{fraction:g}" for fraction in section.fractions if fraction > 0) + f": less than half a sample of {num_train}",
            remedy=f"declare larger shares, or numbers of samples: {name}.counts: [0, 1, 2]",
        )
    if largest >= num_train:
        raise PlanError(
            "a removal would take the whole training set",
            where=f"{name}.fractions or {name}.counts",
            expected=f"fewer than {num_train} samples removed",
            got=f"{largest} of {num_train}",
        )


def removal_warnings(name: str, section: RemovalSection, num_train: int) -> list[str]:
    """What limits the reading of the removals of the section ``name``: shares that remove nothing, or as many samples as another one."""
    removals, found = section.removals(num_train), []
    if largest_count(section, num_train) == 0:
        found.append(
            f"{name} removes no sample, so its numbers are 0 for every method. The smallest useful share is "
            f"{smallest_share_text(num_train)}."
        )
    empty = [f"{fraction:g}" for fraction, count in removals if count == 0 and fraction > 0]
    if empty:
        found.append(
            f"{name}.fractions: the share{'s' if len(empty) > 1 else ''} {', '.join(empty)} of {num_train} training samples "
            f"remove{'' if len(empty) > 1 else 's'} no sample, which adds zeros to the mean. The smallest useful share is "
            f"{smallest_share_text(num_train)}."
        )
    same: dict[int, list[str]] = {}
    for fraction, count in removals:
        if count > 0:
            same.setdefault(count, []).append(f"{fraction:g}")
    found += [
        f"{name}.fractions: the shares {', '.join(shares)} of {num_train} training samples are the same removal, of {count} "
        f"sample{'s' if count > 1 else ''}, which counts {len(shares)} times."
        for count, shares in same.items()
        if len(shares) > 1
    ]
    return found


def smallest_share_text(num_train: int) -> str:
    """The share of one training sample, which is surely not rounded to none."""
    return f"1/{num_train} = {1 / num_train:.3g}"


def largest_count(section: RemovalSection, num_train: int) -> int:
    """Samples of the largest removal."""
    return max(count for _, count in section.removals(num_train))


def removals_text(section: RemovalSection) -> str:
    """The declared removals, for people."""
    if section.counts is not None:
        return ", ".join(f"{count:,}" for count in section.counts) + " samples"
    return ", ".join(f"{100 * fraction:g} %" for fraction in section.fractions) + " of the training set"


def policy_text(section: RetrainSection) -> str:
    """How models are retrained, for people."""
    batches = ", the remaining rows divided into new batches: fewer rows take fewer steps" if is_rebatched(section.retrain) else ""
    if not is_fresh(section.retrain):
        return f"same initialisation and order (common random numbers){batches}"
    times = f", {section.replicates} times; the mean is used" if section.replicates > 1 else ""
    return f"fresh initialisation and order{batches}{times}"


def deletion_table(requests: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """One row a (seed, method, test point, sign, fraction), sorted by these.

    Columns: seed, method, test_id, sign, fraction, num_removed, score_original, score_retrained, delta. ``delta`` =
    ``score_retrained`` - ``score_original``, in float64, of the declared target f at the test point; ``score_retrained`` is the mean
    over the replicates. ``requests`` has the columns of :data:`REMOVAL_REQUESTS`; ``ledger`` is as in
    :func:`~genrep_dist.evaluation.ledger_scores.ledger_scores`.

    Raises what that raises, and StoreError for malformed ``requests`` (:func:`check_requests`).
    """
    each = _each_replicate(requests, ledger)
    rows = each.unique(REMOVAL_COLUMNS, keep="first", maintain_order=True)
    return (
        rows.with_columns(score_retrained=replicate_means(each, REMOVAL_COLUMNS, "score_retrained"))
        .with_columns(delta=pl.col("score_retrained") - pl.col("score_original"))
        .select(*REMOVAL_COLUMNS, "num_removed", "score_original", "score_retrained", "delta")
    )


def replicates_table(requests: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """The replicates whose means are in :func:`deletion_table`, one a row, with the same arguments and errors.

    Columns: seed, method, test_id, sign, fraction, replicate, num_removed, score_retrained, delta; sorted by the first six.
    """
    each = _each_replicate(requests, ledger).with_columns(delta=pl.col("score_retrained") - pl.col("score_original"))
    return each.select(*REMOVAL_COLUMNS, "replicate", "num_removed", "score_retrained", "delta")


def replicate_means(each: pl.DataFrame, group: Sequence[str], value: str) -> pl.Series:
    """Mean of ``value`` in each group of equal ``group`` columns, (number of groups,) float64, in the order of the rows.

    The rows of a group are adjacent. They are summed in their order, so that the last bit does not depend on the number of threads.
    """
    run = each.select(pl.struct(group).rle_id()).to_series().to_numpy()
    return pl.Series(value, np.bincount(run, weights=each[value].to_numpy()) / np.bincount(run), dtype=pl.Float64)


def _each_replicate(requests: pl.DataFrame, ledger: pl.LazyFrame) -> pl.DataFrame:
    """``requests`` with ``score_original`` and ``score_retrained``, sorted by removal and replicate."""
    requests = check_requests(requests)
    originals = requests.select(pl.col("original_key").alias("key"), "output_position")
    found = ledger_scores(pl.concat([requests.select("key", "output_position"), originals]), ledger)
    original = found.rename({"key": "original_key", "score": "score_original"})
    retrained = found.rename({"score": "score_retrained"})
    return (
        requests.join(original, on=["original_key", "output_position"], how="left", validate="m:1")
        .join(retrained, on=["key", "output_position"], how="left", validate="m:1")
        .sort(*REMOVAL_COLUMNS, "replicate")
    )


def check_requests(requests: pl.DataFrame) -> pl.DataFrame:
    """``requests`` with exactly the columns and types of :data:`REMOVAL_REQUESTS`, or StoreError.

    A removal has the replicates 0 .. r-1, with one r for all removals; removing nothing is one model, replicate 0. The replicates of a
    removal are different models. They share the output position and the original model.
    """
    absent = [name for name in REMOVAL_REQUESTS if name not in requests.columns]
    if absent:
        raise StoreError("columns are missing", where=_WHERE, expected=", ".join(REMOVAL_REQUESTS), got=f"no {', '.join(absent)}")
    try:
        requests = requests.select(pl.col(name).cast(dtype) for name, dtype in REMOVAL_REQUESTS.items())
    except pl.exceptions.PolarsError as error:
        raise StoreError("a column has a wrong type", where=_WHERE, expected=str(REMOVAL_REQUESTS), got=str(error)) from error
    nulls = [column.name for column in requests if column.null_count()]
    if nulls:
        raise StoreError("values are missing", where=_WHERE, expected="no null", got=f"nulls in {', '.join(nulls)}")
    unknown = requests.filter(~pl.col("sign").is_in(SIGNS))
    if unknown.height:
        raise StoreError("unknown sign", where=_WHERE, expected=" or ".join(SIGNS), got=repr(unknown["sign"].min()))
    one_each = (*REMOVAL_COLUMNS, "replicate")
    # A repeated row would have twice the weight in every mean.
    twice = requests.filter(requests.select(one_each).is_duplicated())
    _refuse(twice, "a removal is requested twice", f"one row a ({', '.join(one_each)})", one_each)
    _check_replicates(requests)
    return requests


def _check_replicates(requests: pl.DataFrame) -> None:
    same = ("output_position", "num_removed", "original_key")
    removals = requests.group_by(REMOVAL_COLUMNS).agg(
        replicates=pl.len(),
        last=pl.col("replicate").max(),
        first=pl.col("replicate").min(),
        agree=pl.all_horizontal(pl.col(name).n_unique() == 1 for name in same),
        models=pl.col("key").n_unique(),
        nothing=(pl.col("num_removed") == 0).all(),
    )
    _refuse(removals.filter(~pl.col("agree")), "replicates of one removal disagree", f"one {', '.join(same)} for all of them")
    # Rows are distinct, so these two conditions give the replicates 0 .. r-1.
    holes = removals.filter((pl.col("first") != 0) | (pl.col("last") + 1 != pl.col("replicates")))
    _refuse(holes, "replicates are missing", "the replicates 0 .. r-1 of a removal", (*REMOVAL_COLUMNS, "first", "last", "replicates"))
    # Several rows of one model would pass for several models.
    repeated = removals.filter(pl.col("models") < pl.col("replicates"))
    _refuse(
        repeated, "replicates of one removal are one model", "another key for each replicate", (*REMOVAL_COLUMNS, "models", "replicates")
    )
    often = max(removals.filter(~pl.col("nothing"))["replicates"].to_list(), default=1)
    due = pl.when("nothing").then(1).otherwise(often)
    expected = f"{often} replicates of each removal, as the largest has, and 1 where nothing is removed"
    _refuse(removals.filter(pl.col("replicates") != due), "removals differ in their replicates", expected, (*REMOVAL_COLUMNS, "replicates"))


def _refuse(rows: pl.DataFrame, what: str, expected: str, shown: Sequence[str] = REMOVAL_COLUMNS) -> None:
    if rows.height:
        got = str(rows.sort(shown).select(shown).row(0, named=True))
        raise StoreError(what, where=_WHERE, expected=expected, got=got)
