"""The points table as full arrays: one array a (metric, method), its rows the seeds, its columns their test points.

Means, intervals, differences and ranks are computed from these arrays. Holes, duplicates and values that are not finite are refused here,
because means over different points would not be comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.errors import NonFiniteError, NotCommittedError, StoreError
from genrep_dist.evaluation.intervals import Array
from genrep_dist.evaluation.metrics.base import metric_infos

_CELL = ("metric", "method", "seed", "test_id")


@dataclass(frozen=True)
class Design:
    """The numbers of one method by one metric: ``values`` (S, P), ``seeds`` (S,) ascending.

    ``test_ids`` (S, P), ascending in each row; None for a metric about no test point, whose P is 1.
    """

    seeds: npt.NDArray[np.int64]
    test_ids: npt.NDArray[np.int64] | None
    values: Array

    @property
    def per_seed(self) -> Array:
        """(S,): the mean over the test points of each seed."""
        return np.asarray(self.values.mean(axis=1), dtype=np.float64)

    @property
    def is_crossed(self) -> bool:
        """Whether all of at least two seeds have the same test points, at least two."""
        return self.test_ids is not None and min(self.values.shape) > 1 and bool((self.test_ids == self.test_ids[0]).all())


def designs(points: pl.DataFrame, methods: Sequence[str]) -> dict[str, dict[str, Design]]:
    """Designs by metric and method; metrics in the order of the registry, methods in that of ``methods``. Row order does not matter.

    ``points`` as in :data:`~genrep_dist.evaluation.metrics.base.POINTS_SCHEMA`. A method without any row of a metric has no design there,
    and a metric that none of ``methods`` has is left out. All methods of a metric, also those that are not in ``methods``, must have the
    same seeds and test points: the designs of one metric are paired.

    Raises NonFiniteError for a value that is not finite; NotCommittedError if a method lacks some of the seeds or test points of a
    metric, or if the seeds have different numbers of points; StoreError for a repeated row, a metric that is not registered and one that
    has a test id in some rows only.
    """
    _check_values(points)
    known = metric_infos()
    unknown = sorted(set(points["metric"].unique()) - set(known))
    if unknown:
        raise StoreError(
            f"the metric {unknown[0]} is not registered",
            where=f"the points table, metric {', '.join(unknown)}",
            expected=f"one of {', '.join(known)}",
            got=", ".join(unknown),
            remedy="import or install the package that registers it (genrep_dist.metrics); if it was renamed, run the experiment again",
        )
    ordered = points.sort(_CELL)
    _check_twice(ordered)
    split = ordered.partition_by("metric", maintain_order=True, as_dict=True)
    found: dict[str, dict[str, Design]] = {}
    for metric in known:
        if (metric,) not in split:
            continue
        rows = split[(metric,)]
        shape = _shape(metric, rows)
        parts = rows.partition_by("method", maintain_order=True, as_dict=True)
        complete = {method: _design(parts[(method,)], shape) for method in dict.fromkeys(methods) if (method,) in parts}
        if complete:
            found[metric] = complete
    return found


def _check_values(points: pl.DataFrame) -> None:
    wrong = points.filter(pl.col("value").is_null() | ~pl.col("value").is_finite()).sort(_CELL)
    if wrong.height:
        raise NonFiniteError(
            "a metric is not a finite number",
            where=f"the points table, {_named(wrong)}",
            expected="a finite value",
            got=str(wrong["value"][0]),
        )


def _check_twice(ordered: pl.DataFrame) -> None:
    twice = ordered.filter(ordered.select(_CELL).is_duplicated())
    if twice.height:
        raise StoreError("a value is there twice", where=f"the points table, {_named(twice)}", got=f"{twice.height} such rows")


def _shape(metric: str, rows: pl.DataFrame) -> tuple[int, int]:
    """(S, P), which all methods of a metric must share."""
    if rows["test_id"].null_count() not in {0, rows.height}:
        raise StoreError(
            "a metric has test ids in some rows only",
            where=f"the points table, metric {metric}",
            got=f"{rows['test_id'].null_count()} of {rows.height} rows without a test id",
        )
    cells = rows.select("seed", "test_id").unique().sort("seed", "test_id")
    for (method,), part in rows.partition_by("method", maintain_order=True, as_dict=True).items():
        if part.height != cells.height:
            lacking = cells.join(part, on=["seed", "test_id"], how="anti", nulls_equal=True, maintain_order="left")
            raise NotCommittedError(
                "the points table has holes",
                where=f"metric {metric}, method {method}",
                expected=f"the {cells.height} seeds and test points that any method has",
                got=f"{part.height}; the first that is missing: seed {lacking['seed'][0]}, test id {lacking['test_id'][0]}",
                remedy="run the experiment to its end; evaluate methods that were measured on other points by themselves",
            )
    sizes = cells.group_by("seed", maintain_order=True).len()
    if sizes["len"].n_unique() > 1:
        raise NotCommittedError(
            "the points table has holes",
            where=f"metric {metric}",
            expected="equally many test points in each seed",
            got=", ".join(f"seed {seed}: {size}" for seed, size in sizes.iter_rows()),
            remedy="run the experiment to its end",
        )
    return sizes.height, int(sizes["len"][0])


def _design(rows: pl.DataFrame, shape: tuple[int, int]) -> Design:
    ids = None if rows["test_id"].null_count() else rows["test_id"].to_numpy().reshape(shape)
    return Design(rows["seed"].to_numpy().reshape(shape)[:, 0], ids, rows["value"].to_numpy().reshape(shape))


def _named(rows: pl.DataFrame) -> str:
    metric, method, seed, test_id = rows.select(_CELL).row(0)
    return f"metric {metric}, method {method}, seed {seed}, test id {test_id}"
