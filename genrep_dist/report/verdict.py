"""What a reader wants first, in sentences: which method, by how much over random, how sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.metrics import METRICS
from genrep_dist.evaluation.results import Judged
from genrep_dist.evaluation.statistics import paired_difference
from genrep_dist.report.significance_marks import LEVEL, comparison
from genrep_dist.report.tables import HEADINGS, RANDOM, columns_of, decimals_for, equal, number, signs_of

FEW_SEEDS = 10
"""Below this, a bootstrap over seeds has few different draws, and its interval is rough."""
MINUS = "\N{MINUS SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Verdict:
    """``headline`` is one sentence; ``sentences`` say how sure, and what is not known. Plain text, to be escaped by who shows it.

    ``best`` is the method that they speak of: the best that is not random removal, or random removal where it is the only one.
    """

    headline: str
    sentences: tuple[str, ...]
    best: str


@dataclass(frozen=True)
class _Gap:
    """A paired difference, method minus other. ``p`` is Holm-corrected, None where the pair was not tested; ``two_way`` is the interval
    for other test points too, None where seeds do not share theirs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None = None
    two_way: tuple[float, float] | None = None


def verdict(
    summary: pl.DataFrame,
    deletion: pl.DataFrame,
    judged: Judged | None = None,
    *,
    baseline: str = RANDOM,
    declared: str | None = None,
    seed: int = 0,
) -> Verdict:
    """Judge the first measured sign (negative where it was measured): the best method against ``baseline``, the method that the
    experiment ``declared`` as its own baseline, and the runner-up; then what the other metrics say.

    Differences are paired over the same networks and test points; their 95% intervals resample networks. The words follow the
    numbers: a lead is established where its Holm-corrected p-value is below 0.05; of pairs that were not tested, where the paired
    interval excludes zero. NotCommittedError when the summary is empty.
    """
    if not summary.height or not signs_of(summary):
        raise NotCommittedError("there is nothing to report", where="the summary", expected="at least one judged method")
    return _Judge(summary, deletion, judged or Judged(), baseline, declared, seed).verdict()


class _Judge:
    def __init__(
        self, summary: pl.DataFrame, deletion: pl.DataFrame, judged: Judged, baseline: str, declared: str | None, seed: int
    ) -> None:
        self.deletion, self.judged, self.baseline, self.declared, self.seed = deletion, judged, baseline, declared, seed
        self.sign = signs_of(summary)[0]
        self.metric = f"auc_del_{self.sign}"
        self.column, _, self.low, self.high = columns_of(self.sign)
        self.better = 1 if self.sign == "negative" else -1
        self.decimals = decimals_for(value for sign in signs_of(summary) for value in summary[f"auc_del_{sign}"])
        # Ties are broken by name, so that the sentences do not depend on the order of the rows.
        ranked = sorted(summary.to_dicts(), key=lambda row: (-self.better * row[self.column], row["method"]))
        self.methods = [row for row in ranked if row["method"] != baseline]
        self.random = next((row for row in ranked if row["method"] == baseline), None)
        self.num_seeds = min(row["num_seeds"] for row in ranked)
        self.num_tests = judged.comparisons.filter((pl.col("metric") == self.metric) & pl.col("p_holm").is_not_null()).height

    def verdict(self) -> Verdict:
        if not self.methods:
            assert self.random is not None
            return Verdict(f"Only {self.baseline} removal was measured: {self._area(self.random)}.", self._about_seeds(), self.baseline)
        best = self.methods[0]
        sentences = (
            *self._how_sure(best),
            *self._against_declared(best),
            *self._runner_up(best),
            *self._other_metrics(best),
            *self._about_seeds(),
        )
        return Verdict(self._headline(best), sentences, best["method"])

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
        found = self._gap(best, self.random)
        doubt = "" if found.low is None or self._is_ahead(found) else ", and a difference is not established"
        return f"{place}: {effect}; {self.baseline} removal changes it by {self._number(self.random[self.column])}{doubt}."

    def _how_sure(self, best: dict[str, Any]) -> list[str]:
        if self.random is None:
            return [f"{self.baseline.capitalize()} removal was not measured, so it is not known how much of this any removal would do."]
        found = self._gap(best, self.random)
        gap = f"{best['method']} minus {self.baseline}, paired over the same networks and test points: {self._with_interval(found)}."
        if found.low is None:
            return [gap]
        if self._is_ahead(found, -self.better):
            return [f"{gap} {self.baseline.capitalize()} removal does better, and not by chance alone."]
        excluded = _excludes_zero(found)
        if not self._is_ahead(found):
            if excluded:
                return [f"{gap} This interval excludes zero, but corrected for all comparisons the difference may be chance."]
            return [f"{gap} This interval includes zero, so the difference may be chance."]
        if not excluded:
            return [f"{gap} The test establishes the difference, although its interval includes zero."]
        better_end, worse_end = (self.low, self.high) if self.better > 0 else (self.high, self.low)
        apart = self.better * (best[better_end] - self.random[worse_end]) > 0
        own = "do not overlap" if apart else "overlap, but the paired difference stays on one side of zero"
        return [f"{gap} The two methods' own intervals {own}.{self._of_other_points(found)}"]

    def _of_other_points(self, found: _Gap) -> str:
        """What the two-way interval adds to a lead that is established for these test points."""
        if found.two_way is None:
            return ""
        low, high = found.two_way
        ends = f"with the test points resampled too, the interval is {self._number(low)} to {self._number(high)}"
        holds = "the lead is not one on these points alone" if low > 0 or high < 0 else "on other test points there may be no lead"
        return f" All seeds share their test points; {ends}: {holds}."

    def _against_declared(self, best: dict[str, Any]) -> list[str]:
        declared = next((row for row in self.methods if row["method"] == self.declared), None)
        if declared is None or len(self.methods) < 2:
            return []
        if declared is best:
            return [f"The best method, {best['method']}, is the baseline that the experiment declares."]
        found = self._gap(best, declared)
        gap = f"Against the declared baseline, {declared['method']}: paired difference {self._with_interval(found)}"
        if found.low is None:
            return [f"{gap}."]
        return [f"{gap}, {'which is established' if self._is_ahead(found) else 'which may be chance'}."]

    def _runner_up(self, best: dict[str, Any]) -> list[str]:
        if len(self.methods) < 2:
            return []
        second = self.methods[1]
        found = self._gap(best, second)
        gap = f"The runner-up, {second['method']}, has {self._value(second)}; paired difference to the best: {self._with_interval(found)}."
        draws = self._in_draws(best["method"], second["method"])
        if found.low is None:
            return [gap]
        if _excludes_zero(found) and (found.p is None or found.p < LEVEL):
            return [f"{gap} This interval excludes zero.{draws}"]
        if _excludes_zero(found):
            return [f"{gap} This interval excludes zero, but corrected for all comparisons the difference may be chance.{draws}"]
        return [f"{gap} This interval includes zero: the two cannot be told apart here.{draws}"]

    def _in_draws(self, best: str, second: str) -> str:
        """What the bootstrap says of the order of the two, and of the first place."""
        ranks, first = self.judged.ranks, self.judged.best
        pair = ranks.filter((pl.col("metric") == self.metric) & (pl.col("method") == best) & (pl.col("other") == second))
        if not pair.height or pair["share"][0] is None:
            return ""
        sentence = f" {best} beats {second} in {percent(pair['share'][0])} of bootstrap draws over seeds"
        place = first.filter((pl.col("metric") == self.metric) & (pl.col("method") == best))
        return f"{sentence}, and all methods in {percent(place['share_best'][0])}." if place.height else f"{sentence}."

    def _other_metrics(self, best: dict[str, Any]) -> list[str]:
        """Whether the other metrics' means name the same method."""
        agree, differ = [], []
        for name in self.judged.measured:
            rows = self.judged.metrics.filter(pl.col("metric") == name).to_dicts()
            if name == self.metric or len(rows) < 2:
                continue
            direction = 1 if METRICS[name].better == "larger" else -1
            top = max(direction * row["mean"] for row in rows)
            leaders = sorted(row["method"] for row in rows if equal(direction * row["mean"], top))
            # Where the best method shares the first place with others, the metric says neither.
            if leaders == [best["method"]]:
                agree.append(METRICS[name].title)
            elif best["method"] not in leaders:
                differ.append(f"{' and '.join(leaders)} ({METRICS[name].title})")
        found = []
        if agree:
            found.append(f"It has the best mean of {_listed(agree)} too.")
        if differ:
            found.append(f"Other metrics have another method in front: {', '.join(differ)}.")
        return found

    def _about_seeds(self) -> tuple[str, ...]:
        if self.num_seeds == 1:
            return ("One seed was run: all numbers describe one network, there are no intervals, and the next network may differ.",)
        notes = []
        if self.num_seeds < FEW_SEEDS:
            notes.append(f"With {self.num_seeds} seeds the intervals are rough.")
        # A sign-flip test over S seeds has 2^S equally likely outcomes, and the two extreme ones count.
        smallest = self.num_tests * 2.0 ** (1 - self.num_seeds)
        if smallest >= LEVEL:
            floor = "every corrected p-value is 1" if smallest >= 1 else f"no corrected p-value can be below {smallest:.2g}"
            many = "one comparison" if self.num_tests == 1 else f"{self.num_tests} comparisons"
            notes.append(f"With {self.num_seeds} seeds and {many} {floor}.")
        if len(self.methods) > 2:
            tested = "; the p-values are corrected for the number of comparisons (Holm)" if self.num_tests else ""
            notes.append(f"The intervals are not corrected for picking the best of several methods{tested}.")
        return tuple(notes)

    def _gap(self, first: dict[str, Any], second: dict[str, Any]) -> _Gap:
        tested = comparison(self.judged.comparisons, self.metric, first["method"], second["method"])
        if tested is not None and tested["mean"] is not None:
            ends = tested["ci95_two_way_low"], tested["ci95_two_way_high"]
            two_way = None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
            return _Gap(tested["mean"], tested["ci95_low"], tested["ci95_high"], tested["p_holm"], two_way)
        found = paired_difference(self.deletion, first["method"], second["method"], sign=self.sign, seed=self.seed)
        return _Gap(found.mean, found.low, found.high)

    def _is_ahead(self, found: _Gap, direction: int | None = None) -> bool:
        """Whether the difference is established on the better side of zero, or on the side of ``direction``."""
        side = direction or self.better
        if found.p is not None:
            return found.p < LEVEL and side * found.mean > 0
        return _excludes_zero(found) and side * found.mean > 0

    def _area(self, row: dict[str, Any]) -> str:
        return f"{HEADINGS[self.sign]} {self._value(row)}"

    def _size(self, row: dict[str, Any]) -> str:
        return self._number(abs(row[self.column])) + self._interval(*_ends(row[self.low], row[self.high], self.better))

    def _value(self, row: dict[str, Any]) -> str:
        return self._number(row[self.column]) + self._interval(row[self.low], row[self.high])

    def _with_interval(self, found: _Gap) -> str:
        if found.low is None or found.high is None:
            return self._number(found.mean)
        p = "" if found.p is None else f"; Holm-corrected {p_text(found.p)}"
        return f"{self._number(found.mean)} (95% interval {self._number(found.low)} to {self._number(found.high)}{p})"

    def _interval(self, low: float | None, high: float | None) -> str:
        return "" if low is None else f" (95% interval {self._number(low)} to {self._number(high)})"

    def _number(self, value: float | None) -> str:
        return number(value, self.decimals, MINUS)


def p_text(p: float) -> str:
    """A p-value as papers write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def percent(share: float) -> str:
    """A share as whole percents; 0 and 100 are said of exactly 0 and 1 only."""
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return f"more than 99{NO_BREAK}%"
    return f"less than 1{NO_BREAK}%" if rounded == 0 and share > 0 else f"{rounded}{NO_BREAK}%"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _excludes_zero(found: _Gap) -> bool:
    return found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)


def _ends(low: float | None, high: float | None, factor: int) -> tuple[float | None, float | None]:
    """The interval of ``factor`` (1 or -1) times a number whose interval is ``low`` to ``high``."""
    if low is None or high is None:
        return None, None
    return (low, high) if factor > 0 else (-high, -low)
