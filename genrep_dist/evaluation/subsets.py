"""Models trained on random subsets, compared with sums of scores: the linear datamodeling score and leave-one-out.

The linear datamodeling score (LDS) of a test point is the Spearman correlation, over subsets S of the training set, of the output of a
model trained on S with sum_{i in S} phi_i (Park et al. 2023, "TRAK: Attributing Model Behavior at Scale"). The leave-one-out correlation
is the same number over subsets without one sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import NonFiniteError, PlanError, StoreError
from genrep_dist.seeds import derive_seed

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def draw_subsets(seed: int, num_train: int, count: int, fraction: float) -> Mask:
    """The samples that each of ``count`` subsets leaves out, bool (count, N).

    A subset keeps round(``fraction`` * N) samples, at least 1 and at most N - 1, drawn uniformly without replacement. Subset j depends on
    ``seed``, j, N and ``fraction`` alone: a larger ``count`` keeps the first ones. PlanError with fewer than two samples.
    """
    if num_train < 2:
        raise PlanError("there are no subsets to train on", where="lds", expected="two training samples or more", got=str(num_train))
    kept = min(max(round(fraction * num_train), 1), num_train - 1)
    removed = np.ones((count, num_train), dtype=np.bool_)
    for subset in range(count):
        removed[subset, _generator(seed, "lds", subset).choice(num_train, size=kept, replace=False)] = False
    return removed


def draw_left_out(seed: int, num_train: int, count: int) -> Mask:
    """``count`` different single samples to leave out, bool (count, N) with one True a row; a larger ``count`` keeps the first ones.

    PlanError if there are fewer samples.
    """
    if count > num_train:
        raise PlanError("too few samples to leave out", where="loo.samples", expected=f"at most {num_train}", got=str(count))
    removed = np.zeros((count, num_train), dtype=np.bool_)
    removed[np.arange(count), _generator(seed, "loo").permutation(num_train)[:count]] = True
    return removed


def draw_relabelled(seed: int, ids: npt.NDArray[np.int64], samples: int | Sequence[int], size: int) -> Mask:
    """Disjoint sets of ``size`` samples, bool (J, N): of the given ids in their order, or of so many drawn uniformly; J = samples // size.

    PlanError for more samples than there are, and for ids that are none of ``ids`` (N,).
    """
    if isinstance(samples, int):
        chosen = _generator(seed, "relabel").permutation(len(ids))[:samples]
    else:
        place = {int(sample): row for row, sample in enumerate(ids)}
        unknown = [sample for sample in samples if sample not in place]
        if unknown:
            raise PlanError("unknown samples to relabel", where="relabel.samples", expected="ids of training samples", got=f"{unknown[:5]}")
        chosen = np.array([place[sample] for sample in samples])
    count = samples if isinstance(samples, int) else len(samples)
    if count > len(chosen):
        raise PlanError("too few samples to relabel", where="relabel.samples", expected=f"at most {len(ids)}", got=str(count))
    sets = np.zeros((count // size, len(ids)), dtype=np.bool_)
    for number, own in enumerate(sets):
        own[chosen[number * size : (number + 1) * size]] = True
    return sets


def subset_correlations(phi: npt.NDArray[np.floating[Any]], removed: Mask, outputs: Array) -> tuple[Array, Mask]:
    """Spearman correlation of predicted and retrained outputs for each test point, (M,) in [-1, 1], and where a side is constant (M,).

    ``phi`` (N, M) scores, ``removed`` (J, N) the samples that each subset leaves out, ``outputs`` (J, M) of the models trained on the
    subsets, the mean over replicates. If predictions or outputs are equal for all subsets, the correlation is not defined: it is 0 and
    True in the second array.

    The result does not depend on the order of the samples, and ties are exact: subsets that leave out equal scores have equal sums.
    Raises StoreError for shapes that do not fit, NonFiniteError for NaN or Inf in ``phi`` or ``outputs``.
    """
    fits = phi.ndim == removed.ndim == outputs.ndim == 2 and removed.shape == (len(outputs), len(phi)) and phi.shape[1] == outputs.shape[1]
    if not fits:
        raise StoreError(
            "scores, subsets and outputs do not fit each other",
            where="subset_correlations",
            expected="phi (N, M), removed (J, N), outputs (J, M)",
            got=f"phi {phi.shape}, removed {removed.shape}, outputs {outputs.shape}",
        )
    for name, values in (("phi", phi), ("outputs", outputs)):
        bad = ~np.isfinite(values)
        if bad.any():
            row, point = np.argwhere(bad)[0]
            raise NonFiniteError(
                f"{bad.sum()} values are not finite",
                where=f"subset_correlations, {name}, row {row}, test point {point}",
                expected="finite numbers",
                got=str(values[row, point]),
            )
    # The sum over a subset is the total minus the removed sum: for each test point it has the ranks of the negative removed sum.
    return spearman(-_exact_sums(removed, phi.astype(np.float64)), outputs)


def noise_ceiling(outputs: Array) -> tuple[Array, Array] | None:
    """The best possible correlation with the retrained outputs: (reliability (M,), ceiling (M,)), both finite; None with R < 2.

    ``outputs`` (R, J, M) of R replicates. Reliability is the mean Spearman correlation rho of the pairs of replicates. The ceiling
    is the correlation of a perfect predictor of the expected output with the mean of the R replicates: the root of that mean's
    reliability by the Spearman-Brown formula,

        sqrt(R rho / (1 + (R - 1) rho)),

    with rho below 0 taken as 0 in the root (reliability itself is not changed). A constant replicate has correlation 0.
    Source: Spearman 1904 ("The proof and measurement of association between two things", attenuation), Spearman 1910 and Brown 1910
    (British Journal of Psychology 3). They hold for Pearson correlations of truth plus independent noise, and approximately
    for ranks: for Gaussian values Spearman's rho is (6/pi) asin(r/2), at most 0.018 below Pearson's r.
    """
    num_replicates = len(outputs)
    if num_replicates < 2:
        return None
    pairs = [spearman(outputs[one], outputs[other])[0] for one, other in itertools.combinations(range(num_replicates), 2)]
    reliability = np.asarray(np.mean(pairs, axis=0), dtype=np.float64)
    rho = np.maximum(reliability, 0.0)
    return reliability, np.sqrt(num_replicates * rho / (1 + (num_replicates - 1) * rho))


def spearman(left: Array, right: Array) -> tuple[Array, Mask]:
    """Spearman correlation of each column of ``left`` (J, M) with that of ``right``, (M,); ties share their mean rank.

    For a constant column the correlation is 0, and the second array is True.
    """
    # Slow to import, and not needed by the planner.
    from scipy.stats import rankdata

    ranks = [rankdata(side, axis=0) - (len(side) + 1) / 2 for side in (left, right)]
    product, *squares = ((a * b).sum(axis=0) for a, b in (ranks, (ranks[0],) * 2, (ranks[1],) * 2))
    size = np.sqrt(squares[0] * squares[1])
    constant = np.asarray(size == 0)
    return np.divide(product, size, out=np.zeros_like(size), where=~constant), constant


def _exact_sums(chosen: Mask, values: Array) -> Array:
    """Sums (J, M) of the ``values`` (N, M) of the ``chosen`` (J, N) rows: exact sums, rounded once.

    The values are split into slices of so few bits that adding N of them needs no rounding, in any order (as in Demmel and
    Nguyen 2013, "Fast reproducible floating-point summation"). One matrix product a slice, usually two or three.
    """
    bits = 52 - math.ceil(math.log2(max(len(values), 2)))
    rows = chosen.astype(np.float64)
    sums: list[Array] = []
    rest = values
    while rest.any():
        _, exponent = np.frexp(np.abs(rest).max(axis=0))
        # No unit below the smallest float64.
        unit = np.ldexp(1.0, np.maximum(exponent - bits, -1074))
        piece = np.rint(rest / unit) * unit
        sums.append(rows @ piece)
        rest = rest - piece
    total = np.zeros((len(chosen), values.shape[1]))
    for part in reversed(sums):
        total = total + part
    return total


def _generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *index)))
