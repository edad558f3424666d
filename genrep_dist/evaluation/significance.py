"""P-values of paired differences over seeds: the sign-flip permutation test, and Holm's correction for multiple comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from genrep_dist.evaluation.intervals import Array
from genrep_dist.seeds import derive_seed

NUM_FLIPS = 49_999
"""All 2^S patterns of signs are used up to this number (15 seeds); beyond it, this many random ones."""
LEVEL = 0.05
"""Of significance, in warnings."""
_ROWS_AT_ONCE = 16
_MAX_HELD = 4_000_000  # numbers of the test in memory: 32 MB


def sign_flip_p_values(rows: Array, *, seed: int = 0) -> Array:
    """Two-sided p-value of each row of ``rows`` (R, S), differences of S independent seeds: (R,).

    Null hypothesis: each difference is as likely as its negative. P is twice the share of the patterns of signs whose mean is at least as
    extreme as the observed one, on its side. With all 2^S patterns (S <= 15) the smallest p is 2 / 2^S: 0.0625 for 5 seeds, which never
    reach 0.05; 0.002 for 10. With more seeds the patterns are random and depend on ``seed`` and S alone; the observed one is included, and
    the smallest p is 2 / 50,000. A row of zeros has p = 1.
    """
    # Blocks and batches depend on S alone: the random patterns, and so a row's p, do not change with the other rows.
    num_seeds = rows.shape[1]
    blocks = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
    return np.concatenate([np.empty(0), *(_p_values(block, max(1, _MAX_HELD // (_ROWS_AT_ONCE * num_seeds)), seed) for block in blocks)])


def smallest_p(num_seeds: int, num_comparisons: int) -> float:
    """The smallest p-value that :func:`sign_flip_p_values` and :func:`holm` can give: 1 for fewer than two seeds, which give none."""
    patterns = min(2**num_seeds, NUM_FLIPS + 1)
    return min(1.0, num_comparisons * 2 / patterns) if num_seeds > 1 else 1.0


def fewest_seeds(num_comparisons: int, level: float = LEVEL) -> int | None:
    """The fewest seeds with which a corrected p-value can reach ``level``; None for more comparisons than any number of seeds allows."""
    return next((count for count in range(2, 17) if smallest_p(count, num_comparisons) <= level), None)


def _p_values(rows: Array, batch: int, seed: int) -> Array:
    if 2 ** rows.shape[1] <= NUM_FLIPS:
        return _exact_p_values(rows)
    from scipy import stats  # takes longer to import than a small experiment to evaluate

    result = stats.permutation_test(
        (rows,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=NUM_FLIPS,
        batch=batch,
        alternative="two-sided",
        axis=1,
        rng=np.random.default_rng(derive_seed(seed, "sign flips")),
    )
    return np.asarray(result.pvalue, dtype=np.float64)


def _exact_p_values(rows: Array) -> Array:
    """As ``scipy.stats.permutation_test`` with all patterns, to the last bit: sums in the same order, and the same tolerance for ties."""
    num_seeds = rows.shape[1]
    patterns = np.arange(2**num_seeds)
    sums = np.zeros((len(patterns), len(rows)))
    for index, values in enumerate(rows.T):
        sums += np.where(patterns >> index & 1, -1.0, 1.0)[:, None] * values
    means, observed = sums / num_seeds, rows.mean(axis=1)
    tolerance = np.abs(100 * np.finfo(np.float64).eps * observed)
    less = np.count_nonzero(means <= observed + tolerance, axis=0)
    greater = np.count_nonzero(means >= observed - tolerance, axis=0)
    p_values: Array = np.clip(np.minimum(less / len(patterns), greater / len(patterns)) * 2, 0.0, 1.0)
    return p_values


def _mean(values: Array, axis: int) -> Any:
    return values.mean(axis=axis)


def holm(p_values: Array) -> Array:
    """Holm's step-down correction of ``p_values`` (R,), in their order: it bounds the probability of any false positive among all R.

    The k-th smallest is multiplied by R - k + 1, is at least the corrected one before it, and at most 1. Holm 1979,
    "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6:65.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected
