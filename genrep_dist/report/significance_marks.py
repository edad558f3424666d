"""Marks of significance behind a mean in a table, and the sentence that defines them."""

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
    """Marks from a comparisons table (:data:`genrep_dist.evaluation.tables.STATISTICS`), by its Holm-corrected p-values.

    ``random`` is the method that selects samples at random, ``baseline`` the one that the experiment declares, if any.
    """

    comparisons: pl.DataFrame
    random: str
    baseline: str | None

    def for_method(self, metric: str, method: str, *, better: int) -> str:
        """The marks of one method; ``better`` is 1 if larger values of the metric are better, -1 if smaller are."""
        marks = ""
        mean, p = self._compared(metric, method, self.random)
        if p < LEVEL:
            marks = next(stars for level, stars in STARS if p < level) if better * mean > 0 else WORSE_THAN_RANDOM
        if self.baseline is not None and self.baseline != self.random:
            mean, p = self._compared(metric, method, self.baseline)
            if p < LEVEL:
                marks += BETTER_THAN_BASELINE if better * mean > 0 else WORSE_THAN_BASELINE
        return marks

    def notes(self, metrics: Iterable[str], shown: Iterable[str]) -> tuple[str, ...]:
        """Sentences that define every mark among ``shown`` (as :meth:`for_method` returns them), or say that there are none."""
        rows = self.comparisons.filter(pl.col("metric").is_in(list(metrics)) & pl.col("p_holm").is_not_null())
        if not rows.height:
            return ()
        marks = "".join(shown)
        found = []
        if "*" in marks:
            levels = ", ".join(f"{stars} p < {level:g}" for level, stars in reversed(STARS))
            found.append(f"better than {self.random}: {levels}")
        meanings = {
            WORSE_THAN_RANDOM: f"worse than {self.random}",
            BETTER_THAN_BASELINE: f"better than the baseline {self.baseline}",
            WORSE_THAN_BASELINE: f"worse than the baseline {self.baseline}",
        }
        found += [f"{mark} {meaning}, p < {LEVEL:g}" for mark, meaning in meanings.items() if mark in marks]
        test = "two-sided sign-flip test over seeds of the paired difference, Holm-corrected over all comparisons of a metric"
        if not found:
            against = " or ".join(name for name in (self.random, self.baseline) if name is not None and name in set(rows["baseline"]))
            return (f"No difference from {against} reaches p < {LEVEL:g} ({test}).",)
        return (f"Marks: {'; '.join(found)} ({test}).",)

    def _compared(self, metric: str, method: str, baseline: str) -> tuple[float, float]:
        """Mean difference and p; a p of 1 if it is not known."""
        row = comparison(self.comparisons, metric, method, baseline)
        if row is None or row["mean"] is None or row["p_holm"] is None:
            return 0.0, 1.0
        return row["mean"], row["p_holm"]


def comparison(comparisons: pl.DataFrame, metric: str, method: str, baseline: str) -> dict[str, float | None] | None:
    """Mean, intervals (ci95_low, ci95_high, ci95_two_way_low, ci95_two_way_high) and p_holm of a pair; None if it was not compared."""
    rows = comparisons.filter((pl.col("metric") == metric) & (pl.col("method") == method) & (pl.col("baseline") == baseline))
    wanted = ("mean", "ci95_low", "ci95_high", "ci95_two_way_low", "ci95_two_way_high", "p_holm")
    return rows.select(wanted).row(0, named=True) if rows.height else None
