"""Marks of significance: what stands behind a mean in a table, and the line that says what it means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

LEVEL = 0.05
STARS = ((0.001, "***"), (0.01, "**"), (LEVEL, "*"))
WORSE_THAN_RANDOM = "↓"
BETTER_THAN_BASELINE = "†"
WORSE_THAN_BASELINE = "‡"


@dataclass(frozen=True)
class Marks:
    """Reads marks off a comparisons table (:data:`genrep_dist.evaluation.results.SCHEMAS`), by its Holm-corrected p-values.

    ``random`` is the method that names samples at random, ``baseline`` the one that the experiment declares, if any.
    """

    comparisons: pl.DataFrame
    random: str
    baseline: str | None

    def of(self, metric: str, method: str, *, better: int) -> str:
        """The marks of one method; ``better`` is 1 where larger values of the metric are better, -1 where smaller are."""
        return self._against_random(metric, method, better) + self._against_baseline(metric, method, better)

    def notes(self, metrics: Iterable[str], shown: Iterable[str]) -> tuple[str, ...]:
        """Sentences that define every mark among ``shown``, marks as :meth:`of` gave them; and what it means that there are none."""
        rows = self.comparisons.filter(pl.col("metric").is_in(list(metrics)) & pl.col("p_holm").is_not_null())
        if not rows.height:
            return ()
        marks = "".join(shown)
        used = [f"{stars} p < {level:g}" for level, stars in reversed(STARS)] if "*" in marks else []
        found = [f"better than {self.random}: {', '.join(used)}"] if used else []
        found += [f"{sign} {text}, p < {LEVEL:g}" for sign, text in self._others() if sign in marks]
        test = "two-sided sign-flip test over seeds of the paired difference, Holm-corrected over all comparisons of a metric"
        if not found:
            against = " or ".join(name for name in (self.random, self.baseline) if name is not None and name in set(rows["baseline"]))
            return (f"No difference from {against} reaches p < {LEVEL:g} ({test}).",)
        return (f"Marks: {'; '.join(found)} ({test}).",)

    def _others(self) -> tuple[tuple[str, str], ...]:
        return (
            (WORSE_THAN_RANDOM, f"worse than {self.random}"),
            (BETTER_THAN_BASELINE, f"better than the baseline {self.baseline}"),
            (WORSE_THAN_BASELINE, f"worse than the baseline {self.baseline}"),
        )

    def _against_random(self, metric: str, method: str, better: int) -> str:
        mean, p = self._compared(metric, method, self.random)
        if p >= LEVEL:
            return ""
        return next(stars for level, stars in STARS if p < level) if better * mean > 0 else WORSE_THAN_RANDOM

    def _against_baseline(self, metric: str, method: str, better: int) -> str:
        if self.baseline is None or self.baseline == self.random:
            return ""
        mean, p = self._compared(metric, method, self.baseline)
        if p >= LEVEL:
            return ""
        return BETTER_THAN_BASELINE if better * mean > 0 else WORSE_THAN_BASELINE

    def _compared(self, metric: str, method: str, baseline: str) -> tuple[float, float]:
        """Mean difference and p; a p of 1 where it is not known."""
        row = comparison(self.comparisons, metric, method, baseline)
        if row is None or row["mean"] is None or row["p_holm"] is None:
            return 0.0, 1.0
        return row["mean"], row["p_holm"]


def comparison(comparisons: pl.DataFrame, metric: str, method: str, baseline: str) -> dict[str, float | None] | None:
    """Mean, intervals (ci95_low, ci95_high, ci95_two_way_low, ci95_two_way_high) and p_holm of a pair; None where it was not compared."""
    rows = comparisons.filter((pl.col("metric") == metric) & (pl.col("method") == method) & (pl.col("baseline") == baseline))
    wanted = ("mean", "ci95_low", "ci95_high", "ci95_two_way_low", "ci95_two_way_high", "p_holm")
    return rows.select(wanted).row(0, named=True) if rows.height else None
