"""Intervals of a mean over networks and test points.

Networks (seeds) are the independent units; the test points of one seed share its network. So the honest interval resamples
seeds: draw S seeds with replacement, average, 10,000 times, take the 2.5% and 97.5% percentiles. The paper's pooled interval,
1.96 s / sqrt(seeds x points), treats all points as independent; it stands beside for comparison. With one seed nothing is known
about another, and there is no interval.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from genrep_dist.seeds import derive_seed

Array = npt.NDArray[np.float64]

NUM_DRAWS = 10_000
CONFIDENCE = 0.95
_MAX_DRAWN = 8_000_000  # numbers that the bootstrap holds at once: 64 MB


def pooled_half_width(auc: Array) -> float | None:
    """The paper's 95% half-width 1.96 s / sqrt(S P) of ``auc`` (S, P), s with one degree of freedom off; None with one seed."""
    if auc.shape[0] < 2:
        return None
    return float(1.96 * auc.std(ddof=1) / math.sqrt(auc.size))


def bootstrap_interval(per_seed: Array, *, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap 95% interval of the mean of ``per_seed`` (S,); (None, None) with one seed.

    The draws depend on ``seed`` and S alone. Seeds that all agree give an interval of width zero.
    """
    if len(per_seed) < 2:
        return None, None
    if (per_seed == per_seed[0]).all():
        # Resampled means would differ from the mean by rounding only.
        mean = float(per_seed.mean())
        return mean, mean
    result = stats.bootstrap(
        (per_seed,),
        np.mean,
        n_resamples=NUM_DRAWS,
        batch=max(1, _MAX_DRAWN // len(per_seed)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(derive_seed(seed, "bootstrap", "clustered")),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
