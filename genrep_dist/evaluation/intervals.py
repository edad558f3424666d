"""Intervals of a mean over networks and test points.

Networks (seeds) are the independent units; the test points of one seed share its network. So the clustered interval resamples seeds: draw
S seeds with replacement, average, repeat 10,000 times, and take two percentiles of the averages. The paper's pooled interval,
1.96 s / sqrt(seeds x points), treats all points as independent and is given for comparison. With one seed there is no interval.

Percentiles: the plain 2.5% and 97.5% are too narrow for few seeds, because resampling divides the variance by S instead of S - 1, and has
the tails of a normal distribution instead of Student's. The expanded percentile interval (Hesterberg 2015, "What teachers should know about
the bootstrap", The American Statistician 69:371) corrects both with a smaller tail, Phi(-sqrt(S / (S - 1)) t): 0.1% for 5 seeds, 0.9% for
10, 1.6% for 20, 2.1% for 50. It cannot extend beyond the smallest and the largest mean of a seed: up to four seeds it is their range, which
contains the mean of a symmetric distribution with probability at most 1 - 2^(1-S) (50%, 75%, 87.5%). Its coverage is measured in
docs/benchmarks/interval_coverage.md.

If all seeds share their test points, the points are a sample too. The two-way ("pigeonhole") bootstrap draws seeds and points independently
of each other (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1:386); its interval covers other networks and other test
points. It counts the noise of single (seed, point) cells up to three times, so it is too wide if that noise dominates; with plain
percentiles it is too narrow if that noise is small. Its percentiles are expanded for the smaller of S and P, which errs on the wide side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from genrep_dist.seeds import derive_seed

Array = npt.NDArray[np.float64]

NUM_DRAWS = 10_000
CONFIDENCE = 0.95
_MAX_HELD = 4_000_000  # numbers of one array in memory: 32 MB
_TILE = 32_768  # numbers that are summed together: they fit the processor's cache


def pooled_half_width(values: Array) -> float | None:
    """The paper's 95% half-width 1.96 s / sqrt(S P) of ``values`` (S, P), s with one degree of freedom off; None with one seed."""
    if values.shape[0] < 2:
        return None
    return float(1.96 * values.std(ddof=1) / math.sqrt(values.size))


def expanded_levels(num_units: int) -> tuple[float, float]:
    """The two levels of the expanded 95% percentile interval, from ``num_units`` >= 2 independent units."""
    from scipy import special

    student = special.stdtrit(num_units - 1, (1 + CONFIDENCE) / 2)
    tail = float(special.ndtr(-math.sqrt(num_units / (num_units - 1)) * student))
    return tail, 1 - tail


def bootstrap_interval(per_seed: Array, *, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """Expanded percentile bootstrap 95% interval of the mean of ``per_seed`` (S,); (None, None) with one seed.

    The draws depend on ``seed`` and S alone. If all seeds are equal, the interval has width zero, at ``per_seed.mean()``.
    """
    found = clustered_intervals(per_seed[None], seed=seed)
    return (None, None) if found is None else (float(found[0, 0]), float(found[0, 1]))


def clustered_intervals(rows: Array, *, seed: int = 0) -> Array | None:
    """:func:`bootstrap_interval` of each row of ``rows`` (R, S): (R, 2). All rows share the draws."""
    if rows.shape[1] < 2:
        return None
    levels = expanded_levels(rows.shape[1])
    return np.concatenate([np.quantile(block, levels, axis=1).T for block in resampled_means(rows, seed=seed)])


def two_way_intervals(values: Array, *, seed: int = 0) -> Array | None:
    """Two-way bootstrap 95% interval of the mean of each crossed design of ``values`` (R, S, P): (R, 2).

    ``values[r, s, p]`` belongs to seed s and to test point p, the same point for all seeds. The percentiles are expanded for the smaller
    of S and P. None with one seed or one point. The draws depend on ``seed``, S and P alone.
    """
    if min(values.shape[1:]) < 2:
        return None
    levels = expanded_levels(min(values.shape[1:]))
    return np.concatenate([np.quantile(block, levels, axis=1).T for block in two_way_means(values, seed=seed)])


def resampled_means(rows: Array, *, seed: int = 0) -> Iterator[Array]:
    """The means of :data:`NUM_DRAWS` bootstrap samples of the columns of ``rows`` (R, S), as blocks (r, NUM_DRAWS) in the rows' order.

    All rows use the same samples of the S seeds, which depend on ``seed`` and S alone. A block has at most 32 MB.
    """
    for centre, deviations in _centred(rows):
        block = np.empty((len(deviations), NUM_DRAWS))
        for draws, counts in _resamples(rows.shape[1], seed, "clustered", _draws_at_once(rows.shape[1])):
            block[:, draws] = _weighted_means(deviations, counts)
        yield centre[:, None] + block


def two_way_means(values: Array, *, seed: int = 0) -> Iterator[Array]:
    """The means of :data:`NUM_DRAWS` two-way bootstrap samples of each of ``values`` (R, S, P), as blocks (r, NUM_DRAWS).

    A sample draws S seeds and, independently of them, P points; all of ``values`` use the same samples.
    """
    num_seeds, num_points = values.shape[1:]
    at_once = _draws_at_once(max(num_seeds, num_points))
    for centre, deviations in _centred(values):
        block = np.empty((len(deviations), NUM_DRAWS))
        seeds = _resamples(num_seeds, seed, "clustered", at_once)
        points = _resamples(num_points, seed, "points", at_once)
        for (draws, seed_counts), (_, point_counts) in zip(seeds, points, strict=True):
            for row, design in enumerate(deviations):
                by_point = _weighted_means(design.T, seed_counts)  # (P, draws)
                block[row, draws] = (by_point * point_counts).sum(axis=0) / num_points
        yield centre[:, None] + block


def _draws_at_once(num_units: int) -> int:
    return max(1, min(NUM_DRAWS, _MAX_HELD // num_units))


def _resamples(num_units: int, seed: int, purpose: str, at_once: int) -> Iterator[tuple[slice, Array]]:
    """The count of each unit in each bootstrap sample (units, draws), for consecutive slices of the draws.

    One generator is used for all draws: ``at_once`` changes the slices and no number.
    """
    generator = np.random.default_rng(derive_seed(seed, "bootstrap", purpose))
    shares = np.full(num_units, 1 / num_units)
    for start in range(0, NUM_DRAWS, at_once):
        stop = min(start + at_once, NUM_DRAWS)
        counts = generator.multinomial(num_units, shares, size=stop - start)
        yield slice(start, stop), np.ascontiguousarray(counts.T, dtype=np.float64)


def _centred(values: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of ``values`` (R, ...): the mean of each (r,), and the deviations from it (r, ...).

    Resampling deviations avoids cancellation with a large mean. If all numbers are equal, the deviations are exactly zero.
    """
    at_once = max(1, min(_MAX_HELD // NUM_DRAWS, _MAX_HELD // math.prod(values.shape[1:])))
    inner = tuple(range(1, values.ndim))
    for start in range(0, len(values), at_once):
        block = np.ascontiguousarray(values[start : start + at_once])
        spread = np.ptp(block, axis=inner, keepdims=True)
        # Row by row and seed by seed, as for a single row: the rounding of a mean depends on the order of its terms.
        centre = np.array([_mean(row) for row in block])
        yield centre, np.where(spread == 0, 0, block - centre.reshape(-1, *(1,) * len(inner)))


def _mean(row: Array) -> float:
    return float((row if row.ndim == 1 else row.mean(axis=1)).mean())


def _weighted_means(rows: Array, weights: Array) -> Array:
    """``rows`` (R, S) @ ``weights`` (S, D) / S, summed unit by unit.

    Not by a matrix product, whose rounding can change with the number of rows and of threads: a method's numbers would depend on the
    other methods.
    """
    num_rows, num_units = rows.shape
    total = np.empty((num_rows, weights.shape[1]))
    width = min(weights.shape[1], _TILE)
    height = max(1, _TILE // width)
    for top in range(0, num_rows, height):
        for left in range(0, weights.shape[1], width):
            part = rows[top : top + height]
            tile = np.zeros((len(part), min(width, weights.shape[1] - left)))
            for unit in range(num_units):
                tile += part[:, unit, None] * weights[unit, left : left + width]
            total[top : top + height, left : left + width] = tile
    total /= num_units
    return total
