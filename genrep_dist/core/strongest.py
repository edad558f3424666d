"""The strongest scores of each sign at every test point, of training samples that come in blocks: exact, whatever the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.attribution import Sign, require_finite_scores
from genrep_dist.errors import ProblemError

MOST_ROWS = 4096
"""Samples whose scores are merged at once."""


@dataclass(frozen=True)
class Strongest:
    """K training samples at each of M points: ``ids`` (M, K) int64 and their ``scores`` (M, K) float64, the strongest first."""

    ids: Tensor
    scores: Tensor

    def first(self, count: int) -> Strongest:
        return Strongest(self.ids[:, :count], self.scores[:, :count])


class StrongestScores:
    """The ``count`` most negative and most positive of the scores that were added, and the sum of all of them.

    What it holds after all samples were added is the beginning of :func:`~genrep_dist.core.attribution.ranking`: of equal scores the
    lowest id is first, and scores of the other sign follow where there are too few. Neither the order nor the size of blocks matters.
    Memory: 64 bytes for each of M (count + B) numbers, with blocks of B samples.
    """

    def __init__(self, num_points: int, count: int) -> None:
        if count < 1:
            raise ProblemError("no scores are to be kept", where="StrongestScores", expected="a count of 1 or more", got=str(count))
        empty = Strongest(torch.empty(num_points, 0, dtype=torch.int64), torch.empty(num_points, 0, dtype=torch.float64))
        self.count = count
        self._kept: dict[Sign, Strongest] = {"negative": empty, "positive": empty}
        self.total = torch.zeros(num_points, dtype=torch.float64)
        """The sum of all scores of each point (M,)."""

    def add(self, phi: Tensor, ids: Tensor) -> None:
        """Add scores ``phi`` (B, M) float64 of samples with ``ids`` (B,) int64, which were not added before.

        Raises NonFiniteError with the ids of scores that are NaN or Inf, ProblemError for shapes that do not fit.
        """
        if phi.dim() != 2 or ids.shape != phi.shape[:1] or ids.dtype != torch.int64 or phi.shape[1] != len(self.total):
            expected, got = f"phi (B, {len(self.total)}), ids (B,) int64", f"phi {tuple(phi.shape)}, ids {tuple(ids.shape)} {ids.dtype}"
            raise ProblemError("scores and ids do not fit each other", where="StrongestScores.add", expected=expected, got=got)
        require_finite_scores(phi, ids, "StrongestScores.add")
        self.total += phi.sum(dim=0)
        # Some rows at a time: once enough scores are known, most others are never sorted.
        step = max(MOST_ROWS, 2 * self.count)
        for at in range(0, len(phi), step):
            self._add(phi[at : at + step].T.contiguous(), ids[at : at + step])

    def _add(self, columns: Tensor, ids: Tensor) -> None:
        """Merge the scores ``columns`` (M, B) of samples with ``ids`` (B,)."""
        for sign, kept in self._kept.items():
            if kept.ids.shape[1] < self.count:
                self._merge(sign, Strongest(ids.expand(len(columns), -1), columns))
                continue
            # Once enough are known, few samples are among the strongest of a point.
            weakest = kept.scores[:, -1:]
            passing = columns <= weakest if sign == "negative" else columns >= weakest
            if bool(passing.any()):
                self._merge(sign, _passing(columns, ids, passing, float("inf") if sign == "negative" else float("-inf")))

    def merge(self, other: StrongestScores) -> None:
        """Add what ``other`` keeps of samples that were not added here."""
        for sign in self._kept:
            self._merge(sign, other.strongest(sign))
        self.total += other.total

    def strongest(self, sign: Sign) -> Strongest:
        """The strongest samples of one sign so far, ``count`` of them or all that were added."""
        return self._kept[sign]

    def _merge(self, sign: Sign, more: Strongest) -> None:
        kept = self._kept[sign]
        ids, scores = torch.cat([kept.ids, more.ids], dim=1), torch.cat([kept.scores, more.scores], dim=1)
        # Sorted by id, so that a stable sort leaves the lowest id in front. Adding 0 turns -0 into 0, which a sort may distinguish.
        ids, by_id = ids.sort(dim=1)
        scores = scores.gather(1, by_id) + 0.0
        scores, order = torch.sort(scores, dim=1, descending=sign == "positive", stable=True)
        self._kept[sign] = Strongest(ids.gather(1, order[:, : self.count]), scores[:, : self.count].clone())

    @classmethod
    def of_points(cls, parts: Sequence[StrongestScores]) -> StrongestScores:
        """The scores of several sets of points, for the same samples, one after the other."""
        found = cls(0, parts[0].count)
        found.total = torch.cat([part.total for part in parts])
        for sign in found._kept:
            kept = [part.strongest(sign) for part in parts]
            found._kept[sign] = Strongest(torch.cat([one.ids for one in kept]), torch.cat([one.scores for one in kept]))
        return found

    # -- as numbers of one array ------------------------------------------------------------------------------------------------

    def packed(self) -> Tensor:
        """All of it as (M, 4 count + 1) int64: ids and scores of each sign, and the sum; of scores the bits. NaN fills empty places."""
        parts = []
        for found in self._kept.values():
            missing = self.count - found.ids.shape[1]
            parts.append(torch.nn.functional.pad(found.ids, (0, missing)))
            parts.append(torch.nn.functional.pad(found.scores, (0, missing), value=float("nan")).contiguous().view(torch.int64))
        return torch.cat([*parts, self.total.view(torch.int64).unsqueeze(1)], dim=1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> StrongestScores:
        """The inverse of :meth:`packed`."""
        found = cls(len(packed), (packed.shape[1] - 1) // 4)
        *parts, total = torch.split(packed, [found.count] * 4 + [1], dim=1)
        found.total = total.contiguous().view(torch.float64).squeeze(1)
        for sign, ids, bits in zip(found._kept, parts[::2], parts[1::2], strict=True):
            scores = bits.contiguous().view(torch.float64)
            # Every point has the scores of the same samples to choose from, so all points have as many.
            known = int((~scores[:1].isnan()).sum())
            found._kept[sign] = Strongest(ids[:, :known], scores[:, :known])
        return found


def _passing(columns: Tensor, ids: Tensor, passing: Tensor, filler: float) -> Strongest:
    """The scores of ``columns`` (M, B) that are ``passing`` (M, B), in as many places as the most of a point, the others ``filler``."""
    points, rows = passing.nonzero(as_tuple=True)
    counts = passing.sum(dim=1)
    places = torch.arange(len(points)) - (counts.cumsum(dim=0) - counts)[points]
    shape = len(columns), int(counts.max())
    found = torch.full(shape, torch.iinfo(torch.int64).max), torch.full(shape, filler, dtype=torch.float64)
    found[0][points, places] = ids[rows]
    found[1][points, places] = columns[points, rows]
    return Strongest(*found)
