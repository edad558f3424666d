"""What a reader wants first, in sentences: which method, by how much over random, how sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.statistics import Difference, paired_difference
from genrep_dist.report.tables import HEADINGS, columns_of, decimals_for, number, signs_of

FEW_SEEDS = 10
"""Below this, a percentile bootstrap over seeds is visibly too narrow."""
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Verdict:
    """``headline`` is one sentence; ``sentences`` say how sure, and what is not known. Plain text, to be escaped by who shows it."""

    headline: str
    sentences: tuple[str, ...]


def verdict(summary: pl.DataFrame, deletion: pl.DataFrame, *, baseline: str = "random", seed: int = 0) -> Verdict:
    """Judge the first measured sign (negative where it was measured): the best method against ``baseline`` and the runner-up.

    Differences are paired over the same networks and test points; their 95% intervals resample networks. The words follow the
    numbers: "ahead" only where the paired interval excludes zero. NotCommittedError when the summary is empty.
    """
    if not summary.height or not signs_of(summary):
        raise NotCommittedError("there is nothing to report", where="the summary", expected="at least one judged method")
    sign = signs_of(summary)[0]
    return _Judge(summary, deletion, sign, baseline, seed).verdict()


class _Judge:
    def __init__(self, summary: pl.DataFrame, deletion: pl.DataFrame, sign: str, baseline: str, seed: int) -> None:
        self.deletion, self.sign, self.baseline, self.seed = deletion, sign, baseline, seed
        self.column, _, self.low, self.high = columns_of(sign)
        self.better = 1 if sign == "negative" else -1
        self.decimals = decimals_for(summary)
        # Ties are broken by name, so that the sentences do not depend on the order of the rows.
        ranked = sorted(summary.to_dicts(), key=lambda row: (-self.better * row[self.column], row["method"]))
        self.methods = [row for row in ranked if row["method"] != baseline]
        self.random = next((row for row in ranked if row["method"] == baseline), None)
        self.num_seeds = min(row["num_seeds"] for row in ranked)

    def verdict(self) -> Verdict:
        if not self.methods:
            assert self.random is not None
            return Verdict(f"Only {self.baseline} removal was measured: {self._area(self.random)}.", self._about_seeds())
        best = self.methods[0]
        sentences = (*self._how_sure(best), *self._runner_up(best), *self._about_seeds())
        return Verdict(self._headline(best), sentences)

    def _headline(self, best: dict[str, Any]) -> str:
        name = best["method"]
        verb = "raises" if self.sign == "negative" else "lowers"
        if self.better * best[self.column] > 0:
            effect = f"leaving out the training samples that it names {verb} the prediction by {self._size(best)}"
        else:
            effect = f"leaving out the training samples that it names does not {verb[:-1]} the prediction: {self._area(best)}"
        place = f"{name} scores best of {len(self.methods)} methods" if len(self.methods) > 1 else str(name)
        if self.random is None:
            return f"{place}: {effect}."
        if self.better * (best[self.column] - self.random[self.column]) <= 0:
            closest = f"the best method, {name}," if len(self.methods) > 1 else str(name)
            reached = f"it has {self._area(self.random)}; {closest} has {self._value(best)}"
            return f"No method does better than {self.baseline} removal: {reached}."
        found = self._difference(best, self.random)
        doubt = "" if found.low is None or self._is_ahead(found) else ", and a difference is not established"
        return f"{place}: {effect}; {self.baseline} removal changes it by {self._number(self.random[self.column])}{doubt}."

    def _how_sure(self, best: dict[str, Any]) -> list[str]:
        if self.random is None:
            return [f"{self.baseline.capitalize()} removal was not measured, so it is not known how much of this any removal would do."]
        found = self._difference(best, self.random)
        gap = f"{best['method']} minus {self.baseline}, paired over the same networks and test points: {self._with_interval(found)}."
        if found.low is None:
            return [gap]
        better_end, worse_end = (self.low, self.high) if self.better > 0 else (self.high, self.low)
        apart = self.better * (best[better_end] - self.random[worse_end]) > 0
        if self._is_ahead(found):
            own = "do not overlap" if apart else "overlap, but the paired difference stays on one side of zero"
            return [f"{gap} The two methods' own intervals {own}."]
        if self._is_ahead(found, -self.better):
            return [f"{gap} {self.baseline.capitalize()} removal does better, and not by chance alone."]
        return [f"{gap} This interval includes zero, so the difference may be chance."]

    def _runner_up(self, best: dict[str, Any]) -> list[str]:
        if len(self.methods) < 2:
            return []
        second = self.methods[1]
        found = self._difference(best, second)
        gap = f"The runner-up, {second['method']}, has {self._value(second)}; paired difference to the best: {self._with_interval(found)}."
        if found.low is None:
            return [gap]
        if self._is_ahead(found):
            return [f"{gap} This interval excludes zero."]
        return [f"{gap} This interval includes zero: the two cannot be told apart here."]

    def _about_seeds(self) -> tuple[str, ...]:
        if self.num_seeds == 1:
            return ("One seed was run: all numbers describe one network, there are no intervals, and the next network may differ.",)
        notes = []
        if self.num_seeds < FEW_SEEDS:
            notes.append(f"With {self.num_seeds} seeds the intervals are rough, and rather too narrow.")
        if len(self.methods) > 2:
            notes.append("The intervals are not corrected for picking the best of several methods.")
        return tuple(notes)

    def _difference(self, first: dict[str, Any], second: dict[str, Any]) -> Difference:
        return paired_difference(self.deletion, first["method"], second["method"], sign=self.sign, seed=self.seed)

    def _is_ahead(self, found: Difference, direction: int | None = None) -> bool:
        """Whether the whole interval lies on the better side of zero, or on the side of ``direction``."""
        low, high = _ends(found.low, found.high, direction or self.better)
        return low is not None and high is not None and low > 0

    def _area(self, row: dict[str, Any]) -> str:
        return f"{HEADINGS[self.sign]} {self._value(row)}"

    def _size(self, row: dict[str, Any]) -> str:
        return self._number(abs(row[self.column])) + self._interval(*_ends(row[self.low], row[self.high], self.better))

    def _value(self, row: dict[str, Any]) -> str:
        return self._number(row[self.column]) + self._interval(row[self.low], row[self.high])

    def _with_interval(self, found: Difference) -> str:
        return self._number(found.mean) + self._interval(found.low, found.high)

    def _interval(self, low: float | None, high: float | None) -> str:
        return "" if low is None else f" (95% interval {self._number(low)} to {self._number(high)})"

    def _number(self, value: float | None) -> str:
        return number(value, self.decimals, MINUS)


def _ends(low: float | None, high: float | None, factor: int) -> tuple[float | None, float | None]:
    """The interval of ``factor`` (1 or -1) times a number whose interval is ``low`` to ``high``."""
    if low is None or high is None:
        return None, None
    return (low, high) if factor > 0 else (-high, -low)
