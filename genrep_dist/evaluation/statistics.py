"""Statistics of the points table: means with intervals, paired comparisons, ranks.

Every function takes the points table (:data:`~genrep_dist.evaluation.metrics.base.POINTS_SCHEMA`) and the methods to evaluate. It returns
a table whose metrics are in the order of the registry and whose methods are in the given order. A method without any row of a metric is
absent from that metric's rows; one that lacks some of its seeds or points is refused (:func:`~genrep_dist.evaluation.designs.designs`).
With one seed, intervals, p-values, shares and ranks are null.

``seed`` starts the bootstrap and the permutation test. All methods share the draws, so that the numbers of a method, or of a pair, do not
depend on the other methods; ``p_holm``, ``mean_rank`` and ``share_best`` are about all methods and do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import polars as pl

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.designs import Design, designs
from genrep_dist.evaluation.intervals import Array, clustered_intervals, pooled_half_width, resampled_means, two_way_intervals
from genrep_dist.evaluation.metrics.base import metric_info
from genrep_dist.evaluation.significance import holm, sign_flip_p_values
from genrep_dist.evaluation.tables import STATISTICS

_ROUNDING = 1e-12  # means that differ by less than this share of the largest number behind them are tied


def metrics_table(points: pl.DataFrame, methods: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """One row a (metric, method), columns as in :data:`genrep_dist.evaluation.tables.STATISTICS`.

    ``mean`` is over the seeds' means. The intervals are those of :mod:`genrep_dist.evaluation.intervals`; the two-way one is null unless
    all seeds have the same test points, at least two.
    """
    rows: list[tuple[object, ...]] = []
    for metric, by_method in designs(points, methods).items():
        per_seed = np.stack([design.per_seed for design in by_method.values()])
        clustered = _ends(clustered_intervals(per_seed, seed=seed), len(by_method))
        crossed = next(iter(by_method.values())).is_crossed
        boxes = np.stack([design.values for design in by_method.values()])
        two_way = _ends(two_way_intervals(boxes, seed=seed) if crossed else None, len(by_method))
        for row, (method, design) in enumerate(by_method.items()):
            half_width = pooled_half_width(design.values)
            rows.append((metric, method, float(per_seed[row].mean()), half_width, *clustered[row], *two_way[row], *design.values.shape))
    return pl.DataFrame(rows, schema=dict(STATISTICS["metrics"].columns), orient="row")


def seed_means(points: pl.DataFrame, methods: Sequence[str]) -> pl.DataFrame:
    """The mean over the test points of each seed: metric, method, seed, value."""
    frames = [
        pl.DataFrame({"metric": metric, "method": method, "seed": design.seeds, "value": design.per_seed})
        for metric, by_method in designs(points, methods).items()
        for method, design in by_method.items()
    ]
    schema = {"metric": pl.String, "method": pl.String, "seed": pl.Int64, "value": pl.Float64}
    return pl.concat([pl.DataFrame(schema=schema), *frames])


def comparisons(points: pl.DataFrame, methods: Sequence[str], baselines: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """One row a (metric, method, baseline) of two methods, columns as in :data:`genrep_dist.evaluation.tables.STATISTICS`.

    ``mean`` is method minus baseline, paired over (seed, test point), in the metric's unit; the metric says whether positive is good. The
    interval is the seed-clustered one, with the two-way one beside it if all seeds have the same test points. ``p_value`` is
    :func:`~genrep_dist.evaluation.significance.sign_flip_p_values` of the seeds' mean differences, at least 2 / 2^S; it does not cover
    other test points. Two baselines are compared once, the earlier minus the later. ``p_holm`` is corrected for all rows of its metric.
    Interval and test make different assumptions and can disagree at the edge. A baseline without a metric has no rows there.

    Raises NotCommittedError for a baseline that is neither one of ``methods`` nor in ``points``.
    """
    known = dict.fromkeys([*methods, *sorted(points["method"].unique())])
    for baseline in baselines:
        if baseline not in known:
            raise NotCommittedError(
                f"no method {baseline} to compare with",
                where="the points table",
                expected="a method of this evaluation",
                got=", ".join(known) or "none",
                remedy="run the experiment again with this method",
            )
    rows: list[tuple[object, ...]] = []
    for metric, by_method in designs(points, list(known)).items():
        pairs = [(m, b) for m, b in compared_pairs(methods, baselines) if m in by_method and b in by_method]
        if not pairs:
            continue
        boxes = np.stack([by_method[m].values - by_method[b].values for m, b in pairs])
        differences = np.stack([box.mean(axis=1) for box in boxes])
        ends = _ends(clustered_intervals(differences, seed=seed), len(pairs))
        first = by_method[pairs[0][0]]
        two_way = _ends(two_way_intervals(boxes, seed=seed) if first.is_crossed else None, len(pairs))
        p_values, corrected = _significance(differences, seed)
        rows.extend(
            (metric, *pair, float(differences[row].mean()), *ends[row], *two_way[row], p_values[row], corrected[row], *first.values.shape)
            for row, pair in enumerate(pairs)
        )
    return pl.DataFrame(rows, schema=dict(STATISTICS["comparisons"].columns), orient="row")


def against_simple(points: pl.DataFrame, methods: Sequence[str], simple: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """One row a (metric, method) for the ``methods`` that are not ``simple`` baselines: does it beat all of these?

    Columns: metric, method, baseline, p_value, p_holm. ``baseline``: the simple one with the best mean. ``p_value`` is the largest of the
    p-values against each simple baseline (:func:`~genrep_dist.evaluation.significance.sign_flip_p_values`), 1 if the method has the worse
    mean of a pair. It tests that some baseline is as good (an intersection-union test, Berger 1982), so that choosing the best baseline
    afterwards needs no correction. ``p_holm`` is corrected for the methods. Null with one seed.
    """
    rows: list[tuple[object, ...]] = []
    for metric, by_method in designs(points, [*methods, *(name for name in simple if name not in methods)]).items():
        direction = metric_info(metric).direction
        others, judged = [b for b in simple if b in by_method], [m for m in methods if m in by_method and m not in simple]
        if not others or not judged:
            continue
        means = {name: direction * float(by_method[name].per_seed.mean()) for name in others}
        best_of = max(others, key=lambda name: (means[name], name))
        boxes = [direction * (by_method[m].values - by_method[b].values) for m in judged for b in others]
        differences = np.stack([box.mean(axis=1) for box in boxes])
        p_values: list[float | None] = [None] * len(judged)
        corrected = p_values
        if differences.shape[1] > 1:
            pairs = np.where(differences.mean(axis=1) > 0, sign_flip_p_values(differences, seed=seed), 1.0)
            largest = pairs.reshape(len(judged), len(others)).max(axis=1)
            p_values, corrected = largest.tolist(), holm(largest).tolist()
        rows.extend((metric, m, best_of, p_values[row], corrected[row]) for row, m in enumerate(judged))
    text, real = pl.String, pl.Float64
    return pl.DataFrame(rows, schema={"metric": text, "method": text, "baseline": text, "p_value": real, "p_holm": real}, orient="row")


def compared_pairs(methods: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Every method with every baseline, each pair once: of two baselines, the earlier with the later."""
    order = {baseline: place for place, baseline in enumerate(dict.fromkeys(baselines))}
    return [(m, b) for m in dict.fromkeys(methods) for b in order if order.get(m, -1) < order[b]]


def ranks(points: pl.DataFrame, methods: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """One row a (metric, method, other) with method != other: metric, method, other, share.

    ``share``: the share of bootstrap draws of seeds in which ``method`` is better than ``other``; ties count half. The shares of a pair
    add up to 1. It is not a p-value: it measures how stable the order is under another draw of networks.
    """
    rows: list[tuple[object, ...]] = []
    for metric, by_method in designs(points, methods).items():
        shares = _shares(metric, by_method, seed)
        rows.extend((metric, method, other, shares.get((method, other))) for method in by_method for other in by_method if method != other)
    return pl.DataFrame(rows, schema=dict(STATISTICS["ranks"].columns), orient="row")


def best(points: pl.DataFrame, methods: Sequence[str], *, seed: int = 0) -> pl.DataFrame:
    """One row a (metric, method): metric, method, mean_rank, share_best, from the draws of :func:`ranks`.

    ``mean_rank``: average over the draws of the method's rank, 1 is best; ties share their average rank. ``share_best``: share of the
    draws in which it is best of all; a tie of k methods counts 1/k for each.
    """
    rows: list[tuple[object, ...]] = []
    for metric, by_method in designs(points, methods).items():
        shares = _shares(metric, by_method, seed)
        leading = _leading(metric, by_method, seed)
        for method in by_method:
            lost = [1 - shares[method, other] for other in by_method if other != method and shares]
            rows.append((metric, method, 1 + math.fsum(lost) if leading else None, leading.get(method)))
    return pl.DataFrame(rows, schema=dict(STATISTICS["best"].columns), orient="row")


def _ends(intervals: Array | None, num_rows: int) -> list[tuple[float | None, float | None]]:
    if intervals is None:
        return [(None, None)] * num_rows
    return [(float(low), float(high)) for low, high in intervals]


def _significance(differences: Array, seed: int) -> tuple[list[float | None], list[float | None]]:
    if differences.shape[1] < 2:
        return [None] * len(differences), [None] * len(differences)
    p_values = sign_flip_p_values(differences, seed=seed)
    return p_values.tolist(), holm(p_values).tolist()


def _better(metric: str, by_method: Mapping[str, Design]) -> dict[str, Array]:
    """Each method's per-seed means (S,), signed so that larger is better; empty with one seed."""
    direction = metric_info(metric).direction
    return {method: direction * design.per_seed for method, design in by_method.items() if len(design.seeds) > 1}


def _shares(metric: str, by_method: Mapping[str, Design], seed: int) -> dict[tuple[str, str], float]:
    """The share of draws in which a method is better than another, by (method, other).

    Computed from each pair's own difference, so that no third method matters; empty with one seed.
    """
    per_seed = _better(metric, by_method)
    pairs = list(combinations(sorted(per_seed), 2))
    if not pairs:
        return {}
    differences = np.stack([per_seed[first] - per_seed[second] for first, second in pairs])
    rounding = [_ROUNDING * max(np.abs(per_seed[first]).max(), np.abs(per_seed[second]).max()) for first, second in pairs]
    shares: dict[tuple[str, str], float] = {}
    drawn = (draws for block in resampled_means(differences, seed=seed) for draws in block)
    for (first, second), draws, limit in zip(pairs, drawn, rounding, strict=True):
        share = float(((draws > limit).sum() + (draws >= -limit).sum()) / (2 * len(draws)))
        shares[first, second], shares[second, first] = share, 1 - share
    return shares


def _leading(metric: str, by_method: Mapping[str, Design], seed: int) -> dict[str, float]:
    """The share of draws in which each method is best of all, by method."""
    per_seed = _better(metric, by_method)
    if not per_seed:
        return {}
    names = sorted(per_seed)
    rows = np.stack([per_seed[name] for name in names])
    means = np.concatenate(list(resampled_means(rows, seed=seed)))
    ahead = means >= means.max(axis=0) - _ROUNDING * np.abs(rows).max()
    return dict(zip(names, (ahead / ahead.sum(axis=0)).mean(axis=1).tolist(), strict=True))
