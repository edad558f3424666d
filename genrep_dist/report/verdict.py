"""The opening sentences of the report: which method is best, by how much over random removal, and how certain that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from genrep_dist.errors import NotCommittedError
from genrep_dist.evaluation.metrics.base import metric_infos
from genrep_dist.evaluation.statistics import against_simple, comparisons
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.significance_marks import LEVEL, comparison
from genrep_dist.report.tables import MINUS, RANDOM, decimals_for, equal, number

FEW_SEEDS = 10
"""With fewer seeds a bootstrap over seeds has few different draws, and its interval is rough."""
NO_BREAK = "\N{NO-BREAK SPACE}"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """``headline`` is one sentence; ``sentences`` say how certain it is. Plain text, not escaped.

    ``best`` is the method that they are about: the one with the best mean except random removal, or random removal if there is no other.
    ``leaders``: ``best``, and the methods that the tests do not tell apart from it.
    """

    headline: str
    sentences: tuple[str, ...]
    best: str
    leaders: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Difference:
    """A paired difference, method minus other. ``p`` is Holm-corrected, None for a pair that was not tested. ``two_way`` is the interval
    that covers other test points too, None if the seeds do not share their points.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None = None
    two_way: tuple[float, float] | None = None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def best_method(tables: EvaluationTables, random: str = RANDOM) -> str:
    """The ``best`` of :func:`verdict`, without its tests. NotCommittedError if nothing was measured."""
    methods = _VerdictWriter(_measured(tables), random, None, (), 0, "").methods
    return str(methods[0]["method"]) if methods else random


def verdict(
    tables: EvaluationTables,
    *,
    random: str = RANDOM,
    declared: str | None = None,
    simple: Sequence[str] = (),
    seed: int = 0,
    noun: str = "prediction",
) -> Verdict:
    """Compare by the first measured metric: the best method with ``random`` removal, with the ``declared`` baseline of the experiment and
    with the runner-up; the others with the ``simple`` baselines among them. Then say what the other metrics show.

    Differences are paired over the same networks and test points; their 95% intervals resample networks. A lead is called established if
    its Holm-corrected p-value is below 0.05; for pairs that were not tested, if the paired interval excludes zero. ``seed`` starts the
    bootstrap of such pairs; ``noun`` names the explained number. NotCommittedError if nothing was measured.
    """
    return _VerdictWriter(_measured(tables), random, declared, simple, seed, noun).verdict()


def _measured(tables: EvaluationTables) -> EvaluationTables:
    if not tables.measured:
        raise NotCommittedError("there is nothing to report", where="the metrics table", expected="at least one evaluated method")
    return tables


class _VerdictWriter:
    def __init__(self, tables: EvaluationTables, random: str, declared: str | None, simple: Sequence[str], seed: int, noun: str) -> None:
        self.tables, self.random_name, self.declared, self.seed, self.noun = tables, random, declared, seed, noun
        self.simple = simple
        self.infos = metric_infos()
        self.info = self.infos[tables.measured[0]]
        self.better = self.info.direction
        rows = tables.metrics.to_dicts()
        self.decimals = decimals_for(row["mean"] for row in rows if row["metric"] == self.info.name or self.infos[row["metric"]].is_main)
        # Ties are broken by name, so that the sentences do not depend on the order of the rows.
        mine = [row for row in rows if row["metric"] == self.info.name]
        ranked = sorted(mine, key=lambda row: (-self.better * row["mean"], row["method"]))
        self.methods: list[Row] = [row for row in ranked if row["method"] != random]
        self.random = next((row for row in ranked if row["method"] == random), None)
        self.num_seeds = min(row["num_seeds"] for row in ranked)
        self.num_tests = tables.comparisons.filter((pl.col("metric") == self.info.name) & pl.col("p_holm").is_not_null()).height

    def verdict(self) -> Verdict:
        if not self.methods:
            assert self.random is not None
            headline = f"Only {self.random_name} removal was measured: {self._titled(self.random)}."
            return Verdict(headline, self._about_seeds(), self.random_name)
        best = self.methods[0]
        leaders = self._leaders(best)
        sentences = (
            *self._against_random(best),
            *self._against_declared(best),
            *self._against_runner_up(best, leaders),
            *self._about_leaders(best, leaders),
            *self._against_simple(),
            *self._other_metrics(best),
            *self._about_seeds(),
        )
        return Verdict(self._headline(best, leaders), sentences, best["method"], tuple(row["method"] for row in leaders))

    def _leaders(self, best: Row) -> list[Row]:
        """The best method and those that no test tells apart from it, best first. With one seed nothing can be tested: all methods."""
        others = [row["method"] for row in self.methods[1:]]
        if not others or self.num_seeds < 2:
            return self.methods
        points = self.tables.points.filter(pl.col("metric") == self.info.name)
        tested = comparisons(points, [best["method"]], others, seed=self.seed)
        behind = set(tested.filter((pl.col("p_holm") < LEVEL) & (self.better * pl.col("mean") > 0))["baseline"])
        return [row for row in self.methods if row["method"] not in behind]

    def _about_leaders(self, best: Row, leaders: list[Row]) -> list[str]:
        if len(leaders) < 2 or len(leaders) == len(self.methods) or self.num_seeds < 2:
            return []
        names = _listed([row["method"] for row in leaders[1:]])
        tests = "one test" if len(self.methods) == 2 else f"{len(self.methods) - 1} tests"
        return [
            f"Not told apart from {best['method']}, which has the best mean: {names} (paired differences, Holm-corrected over {tests})."
        ]

    def _against_simple(self) -> list[str]:
        """Which methods beat all simple baselines, and which do not."""
        points = self.tables.points.filter(pl.col("metric") == self.info.name)
        judged = [row["method"] for row in self.methods]
        tested = against_simple(points, judged, [name for name in self.simple if name in judged], seed=self.seed)
        if not tested.height:
            return []
        best = next(row for row in self.methods if row["method"] == tested["baseline"][0])
        shown = f"The best simple baseline is {best['method']}, {self._value(best)}."
        if self.num_seeds < 2:
            return [shown]
        ahead = set(tested.filter(pl.col("p_holm") < LEVEL)["method"])
        beating = [name for name in judged if name in ahead]
        behind = [name for name in judged if name in set(tested["method"]) - ahead]
        if not beating:
            return [f"{shown} No method is shown to beat it (sign-flip tests against every simple baseline, Holm-corrected)."]
        rest = f"; not shown for {_listed(behind)}" if behind else ""
        verb = "beats" if len(beating) == 1 else "beat"
        return [f"{shown} {_listed(beating)} {verb} every simple baseline (sign-flip tests, Holm-corrected, p < {LEVEL:g}){rest}."]

    def _headline(self, best: Row, leaders: list[Row]) -> str:
        if self.random is not None and self.better * (best["mean"] - self.random["mean"]) <= 0:
            values = f"it has {self._titled(self.random)}; {best['method']} has {self._value(best)}"
            return f"No method does better than {self.random_name} removal: {values}."
        place, shown = self._place(best, leaders)
        verb = self.info.effect
        effect = self._effect(shown)
        if self.random is None:
            return f"{place}: {effect}."
        found = self._difference(best, self.random)
        doubt = "" if found.low is None or self._is_ahead(found) else ", and a difference is not established"
        if doubt:
            place = f"No method is shown to do better than {self.random_name} removal"
            effect = f"with {best['method']}{', the best one,' if len(self.methods) > 1 else ''} {self._effect([best])}"
        other = f"{self.random_name} removal changes it by" if verb else f"{self.random_name} removal has"
        return f"{place}: {effect}; {other} {self._number(self.random['mean'])}{doubt}."

    def _place(self, best: Row, leaders: list[Row]) -> tuple[str, list[Row]]:
        """Who leads, and the rows that the effect is stated of."""
        count = len(self.methods)
        if count == 1:
            return str(best["method"]), [best]
        if self.num_seeds < 2:
            return f"{best['method']} has the best value of {count} methods in one network", [best]
        if len(leaders) == 1:
            return f"{best['method']} scores best of {count} methods", [best]
        if len(leaders) == count:
            return f"The {_count(count).lower()} methods cannot be told apart", leaders
        return f"{_count(len(leaders))} of {count} methods lead and cannot be told apart", leaders

    def _effect(self, rows: list[Row]) -> str:
        """What removing the samples of these methods does to the prediction; of several methods from the worst to the best."""
        best, worst, verb = rows[0], rows[-1], self.info.effect
        removing = f"removing the training samples that {'they select' if len(rows) > 1 else 'it selects'}"
        if not verb:
            return self._titled(best) if len(rows) == 1 else f"{self.info.title} {self._range(rows)}"
        if self.better * worst["mean"] > 0:
            amount = self._size(best) if len(rows) == 1 else self._range(rows, absolute=True)
            return f"{removing} {verb}s the {self.noun} by {amount} on average over the declared shares"
        if len(rows) > 1 and self.better * best["mean"] > 0:
            return f"{removing} changes the {self.noun} by {self._range(rows)} on average over the declared shares"
        return f"{removing} does not {verb} the {self.noun}: {self._titled(best)}"

    def _range(self, rows: list[Row], *, absolute: bool = False) -> str:
        """The means of several methods, from the worst to the best; one number where they are shown as one."""
        ends = [self._number(abs(row["mean"]) if absolute else row["mean"]) for row in (rows[-1], rows[0])]
        return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"

    def _against_random(self, best: Row) -> list[str]:
        name = self.random_name.capitalize()
        if self.random is None:
            return [f"{name} removal was not measured, so the effect of removing arbitrary samples is not known."]
        found = self._difference(best, self.random)
        shown = f"{best['method']} minus {self.random_name}, paired over the same networks and test points: {self._with_interval(found)}."
        if found.low is None:
            return [shown]
        if self._is_ahead(found, -self.better):
            return [f"{shown} {name} removal does better, and not by chance alone."]
        if not self._is_ahead(found):
            return [f"{shown} {self._doubt(found)}"]
        if not found.excludes_zero:
            return [f"{shown} The test establishes the difference, although its interval includes zero."]
        best_end, random_end = ("low", "high") if self.better > 0 else ("high", "low")
        apart = self.better * (best[f"ci95_clustered_{best_end}"] - self.random[f"ci95_clustered_{random_end}"]) > 0
        own = "do not overlap" if apart else "overlap, but the paired difference excludes zero"
        return [f"{shown} The two methods' own intervals {own}.{self._other_points(found)}"]

    def _other_points(self, found: _Difference) -> str:
        """What the two-way interval adds to a lead that is established for these test points."""
        if found.two_way is None:
            return ""
        low, high = found.two_way
        ends = f"with the test points resampled too, the interval is {self._number(low)} to {self._number(high)}"
        holds = "the lead is not limited to these points" if low > 0 or high < 0 else "on other test points there may be no lead"
        return f" All seeds share their test points; {ends}: {holds}."

    def _against_declared(self, best: Row) -> list[str]:
        declared = next((row for row in self.methods if row["method"] == self.declared), None)
        if declared is None or len(self.methods) < 2:
            return []
        if declared is best:
            return [f"The best method, {best['method']}, is the baseline that the experiment declares."]
        found = self._difference(best, declared)
        shown = f"Against the declared baseline, {declared['method']}: paired difference {self._with_interval(found)}"
        if found.low is None:
            return [f"{shown}."]
        return [f"{shown}, {'which is established' if self._is_ahead(found) else 'which may be chance'}."]

    def _against_runner_up(self, best: Row, leaders: list[Row]) -> list[str]:
        if len(self.methods) < 2:
            return []
        second = self.methods[1]
        found = self._difference(best, second)
        shown = (
            f"The runner-up, {second['method']}, has {self._value(second)}; paired difference to the best: {self._with_interval(found)}."
        )
        if found.low is None:
            return [shown]
        draws = self._bootstrap_order(best["method"], second["method"])
        if found.excludes_zero and (second not in leaders if found.p is None else found.p < LEVEL):
            return [f"{shown} This interval excludes zero.{draws}"]
        if found.excludes_zero:
            return [f"{shown} {self._doubt(found)}{draws}"]
        return [f"{shown} This interval includes zero: these data do not separate the two.{draws}"]

    def _bootstrap_order(self, best: str, second: str) -> str:
        """In which share of the bootstrap draws the best method is ahead of the second, and of all."""
        ranks, first = self.tables.ranks, self.tables.best
        mine = (pl.col("metric") == self.info.name) & (pl.col("method") == best)
        pair = ranks.filter(mine & (pl.col("other") == second))
        if not pair.height or pair["share"][0] is None:
            return ""
        sentence = f" {best} beats {second} in {percent(pair['share'][0])} of bootstrap draws over seeds"
        place = first.filter(mine)
        return f"{sentence}, and all methods in {percent(place['share_best'][0])}." if place.height else f"{sentence}."

    def _other_metrics(self, best: Row) -> list[str]:
        """Whether the best means of the other metrics are those of the same method."""
        agree, differ = [], []
        for name in self.tables.measured:
            rows = self.tables.metrics.filter(pl.col("metric") == name).to_dicts()
            if name == self.info.name or len(rows) < 2:
                continue
            info = self.infos[name]
            top = max(info.direction * row["mean"] for row in rows)
            leaders = sorted(row["method"] for row in rows if equal(info.direction * row["mean"], top))
            # If the best method shares the first place, the metric neither agrees nor differs.
            if leaders == [best["method"]]:
                agree.append(info.title)
            elif best["method"] not in leaders:
                differ.append(f"{' and '.join(leaders)} ({info.title})")
        found = []
        if agree:
            found.append(f"It also has the best mean of {agree[0] if len(agree) == 1 else ', '.join(agree[:-1]) + ' and ' + agree[-1]}.")
        if differ:
            found.append(f"By other metrics another method is best: {', '.join(differ)}.")
        return found

    def _about_seeds(self) -> tuple[str, ...]:
        if self.num_seeds == 1:
            return ("One seed was run: all numbers describe one network, there are no intervals, and the next network may differ.",)
        notes = []
        if self.num_seeds < FEW_SEEDS:
            notes.append(f"With {self.num_seeds} seeds the intervals are rough.")
        # A sign-flip test over S seeds has 2^S equally likely outcomes; the two extreme ones give the smallest p-value.
        smallest = self.num_tests * 2.0 ** (1 - self.num_seeds)
        if smallest >= LEVEL:
            floor = "every corrected p-value is 1" if smallest >= 1 else f"no corrected p-value can be below {smallest:.2g}"
            many = "one comparison" if self.num_tests == 1 else f"{self.num_tests} comparisons"
            notes.append(f"With {self.num_seeds} seeds and {many} {floor}.")
        if len(self.methods) > 2:
            tested = "; the p-values are corrected for the number of comparisons (Holm)" if self.num_tests else ""
            notes.append(f"The intervals are not corrected for selecting the best of several methods{tested}.")
        return tuple(notes)

    def _difference(self, first: Row, second: Row) -> _Difference:
        tested = comparison(self.tables.comparisons, self.info.name, first["method"], second["method"])
        if tested is not None and tested["mean"] is not None:
            low, high = tested["ci95_two_way_low"], tested["ci95_two_way_high"]
            two_way = None if low is None or high is None else (low, high)
            return _Difference(tested["mean"], tested["ci95_low"], tested["ci95_high"], tested["p_holm"], two_way)
        points = self.tables.points.filter(pl.col("metric") == self.info.name)
        found = comparisons(points, [first["method"]], [second["method"]], seed=self.seed).row(0, named=True)
        return _Difference(found["mean"], found["ci95_low"], found["ci95_high"])

    def _is_ahead(self, found: _Difference, direction: int | None = None) -> bool:
        """Whether the difference is established on the better side of zero, or on the side of ``direction``."""
        established = found.excludes_zero if found.p is None else found.p < LEVEL
        return established and (direction or self.better) * found.mean > 0

    def _doubt(self, found: _Difference) -> str:
        if found.excludes_zero:
            return "This interval excludes zero, but corrected for all comparisons the difference may be chance."
        return "This interval includes zero, so the difference may be chance."

    def _titled(self, row: Row) -> str:
        return f"{self.info.title} {self._value(row)}"

    def _size(self, row: Row) -> str:
        low, high = row["ci95_clustered_low"], row["ci95_clustered_high"]
        if self.better < 0 and low is not None and high is not None:
            low, high = -high, -low
        return self._number(abs(row["mean"])) + self._interval(low, high)

    def _value(self, row: Row) -> str:
        return self._number(row["mean"]) + self._interval(row["ci95_clustered_low"], row["ci95_clustered_high"])

    def _with_interval(self, found: _Difference) -> str:
        p = "" if found.p is None else f"; Holm-corrected {p_text(found.p)}"
        return self._number(found.mean) + self._interval(found.low, found.high, p)

    def _interval(self, low: float | None, high: float | None, p: str = "") -> str:
        return "" if low is None else f" (95% interval {self._number(low)} to {self._number(high)}{p})"

    def _number(self, value: float | None) -> str:
        return number(value, self.decimals, MINUS)


def _count(number: int) -> str:
    """A small number as a word that begins a sentence."""
    words = ("Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    return words[number - 2] if 2 <= number <= len(words) + 1 else str(number)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def p_text(p: float) -> str:
    """A p-value as papers write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def percent(share: float) -> str:
    """A share as whole percents; 0 and 100 stand for exactly 0 and 1 only."""
    rounded = round(100 * share)
    if rounded == 100 and share < 1:
        return f"more than 99{NO_BREAK}%"
    return f"less than 1{NO_BREAK}%" if rounded == 0 and share > 0 else f"{rounded}{NO_BREAK}%"
