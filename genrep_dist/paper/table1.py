"""The paper's Table 1 beside ours: three blocks with differences, the paper's claims tested, and the differences of the set-ups."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from genrep_dist.config import Experiment
from genrep_dist.evaluation.intervals import bootstrap_interval
from genrep_dist.paper.claims import MIN_SEEDS, Claim, ClaimResult, ClaimStatus, check_claim, combined_status
from genrep_dist.paper.differences import differences
from genrep_dist.paper.published import (
    BLOCKS,
    CLAIMS,
    LAST_LAYER_INFLUENCE,
    LAST_LAYER_KERNEL,
    PAPER,
    REPLACES,
    PaperColumn,
)
from genrep_dist.report.tables import RANDOM
from genrep_dist.results.reporting import facts, time_unit

if TYPE_CHECKING:
    from genrep_dist.results import Run

METRIC = "auc_del_negative"
_OTHERS = "Methods and settings that the paper does not have"
_MANY = 10_000
"""Networks above which a claim counts as a difference of zero."""
TUNED: Mapping[str, tuple[str, tuple[float, ...], tuple[str, ...]]] = {
    "damping": ("influence.damping", (0.001, 0.01, 0.1, 1.0, 10.0), ("influence-final/tracking", "influence-function")),
    "lambda": ("surrogate.lambda", (0.001, 0.01, 0.1, 1.0, 10.0, 100.0), ("ntk-final/surrogate",)),
}
"""What is tuned: name -> (parameter, values, methods)."""
TUNING_SEEDS = 6
_TUNED_SUFFIX = ", tuned"
_COMPARISON_HEADINGS = ("data", "comparison", "difference [95%]", "status", "networks to decide")
_LAST_LAYER_NAMES = {"influence-final/tracking": LAST_LAYER_KERNEL, "influence-function": LAST_LAYER_INFLUENCE}


@dataclass(frozen=True)
class DataColumn:
    """One data set, measured: ``problem``, its experiment's ``name``; ``points`` method, seed, test_id, value (one area a row).

    ``differs``: (what, in the paper, here, why). ``facts``: how it was measured, label to value. ``simple``: the methods that are simple
    baselines. ``tuned``: the methods of which there are also tuned rows.
    """

    problem: str
    name: str
    points: pl.DataFrame
    differs: Sequence[tuple[str, str, str, str]] = ()
    facts: Mapping[str, str] | None = None
    simple: Sequence[str] = ()
    tuned: frozenset[str] = frozenset()

    @property
    def paper(self) -> PaperColumn:
        """The paper's data set that this one is, or replaces."""
        return PAPER[REPLACES.get(self.problem, self.problem)]

    @property
    def title(self) -> str:
        return f"{self.problem} (for {self.paper.title})" if self.problem in REPLACES else self.paper.title


@dataclass(frozen=True)
class CellComparison:
    """Ours (mean, 95% interval clustered by seed), the paper's (mean, half-width), and the difference ours - paper with its interval.

    Either may be missing. The two are independent, so the half-widths of their intervals add in squares.
    """

    ours: tuple[float, float | None, float | None] | None
    paper: tuple[float, float] | None

    @property
    def difference(self) -> tuple[float, float, float] | None:
        if self.ours is None or self.paper is None:
            return None
        (mean, low, high), (theirs, half) = self.ours, self.paper
        if low is None or high is None:
            return None
        return mean - theirs, mean - theirs - math.hypot(mean - low, half), mean - theirs + math.hypot(high - mean, half)


@dataclass(frozen=True)
class TextTable:
    """A table of texts: a heading row and rows; ``notes`` are shown below it."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table1Page:
    """The whole page: a title, sentences, then sections of tables."""

    title: str
    intro: tuple[str, ...]
    sections: tuple[tuple[str, tuple[TextTable, ...]], ...]


def last_layer_experiment(experiment: Experiment) -> Experiment | None:
    """The same experiment with influence from the last layer's parameters alone, as the paper had it for texts; None for images.

    It evaluates only the influence methods, on the same networks and test points; what the two share is computed once.
    """
    methods = [name for name in _LAST_LAYER_NAMES if name in experiment.methods]
    if not methods or not PAPER[REPLACES.get(experiment.problem.name, experiment.problem.name)].text:
        return None
    influence = {**experiment.influence.model_dump(mode="json"), "curvature": "last-layer"}
    return experiment.with_fixed_seeds(name=f"{experiment.name}-last-layer", methods=methods, blocks={}, baseline=None, influence=influence)


def tuned_experiments(experiment: Experiment) -> list[Experiment]:
    """For each entry of :data:`TUNED` whose methods the experiment has: the same experiment with that parameter tuned.

    It evaluates these methods alone, on the same networks and test points. The parameter is chosen on :data:`TUNING_SEEDS` other networks,
    with the largest removal alone: for equally many retrainings, more networks say more than more removals of one network.
    """
    found, settings = [], {"fractions": [0.0, max(experiment.deletion.fractions)]}
    for name, (parameter, values, affected) in TUNED.items():
        methods = [method for method in affected if method in experiment.methods]
        if methods:
            tune = {"parameter": parameter, "values": values, "seeds": TUNING_SEEDS, "settings": settings}
            changes = {"methods": methods, "blocks": {}, "baseline": None, "tune": tune}
            found.append(experiment.with_fixed_seeds(name=f"{experiment.name}-tuned-{name}", **changes))
    return found


def measured_column(run: Run, last_layer: Run | None = None, tuned: Sequence[Run] = ()) -> DataColumn:
    """The column of a finished run, for texts of its :func:`last_layer_experiment`, and of its :func:`tuned_experiments`."""
    points, more = [_areas(run)], dict[str, str]()
    if last_layer is not None:
        points.append(_areas(last_layer).with_columns(pl.col("method").replace(_LAST_LAYER_NAMES)))
        costs = last_layer.costs()
        more["Influence of the last layer"] = (
            f"run {last_layer.name}: {costs['unique']:,} distinct retrainings, {costs['seconds']:,.0f} {time_unit(last_layer).name}"
        )
    for one in tuned:
        points.append(_areas(one).with_columns(pl.col("method") + _TUNED_SUFFIX))
        choice = one.choices["tune"]
        tried = ", ".join(f"{value['value']:g} ({value['mean']:+.2f})" for value in choice["tried"])
        removed = ", ".join(f"{100 * share:g}%" for share in choice["settings"]["fractions"])
        more[f"Tuned {choice['parameter']}"] = (
            f"{choice['chosen']:g}; tried on {TUNING_SEEDS} other networks, with the mean area of the shares {removed}: {tried}"
        )
    experiment = run.plan.experiment
    described = differences(run), facts(run, run.judged()) | more
    varied = frozenset(method for one in tuned for method in one.plan.experiment.methods)
    return DataColumn(experiment.problem.name, run.name, pl.concat(points), *described, experiment.simple_methods, varied)


def compared_cell(column: DataColumn, method: str, *, seed: int = 0) -> CellComparison:
    """One cell of the table; ``seed`` starts the bootstrap."""
    rows = column.points.filter(pl.col("method") == method)
    theirs = column.paper.cells.get(method)
    if not rows.height:
        return CellComparison(None, theirs)
    per_seed = rows.group_by("seed").agg(pl.col("value").mean()).sort("seed")["value"].to_numpy()
    low, high = bootstrap_interval(per_seed, seed=seed)
    return CellComparison((float(per_seed.mean()), low, high), theirs)


def long_table(columns: Sequence[DataColumn]) -> pl.DataFrame:
    """All cells, a row each: block, data set, method, ours and the paper's with their intervals, the difference and its interval."""
    rows = []
    for block, methods in (*BLOCKS.items(), (_OTHERS, dict.fromkeys(other_methods(columns), ""))):
        for column in columns:
            for method in methods:
                found = compared_cell(column, method)
                ours, theirs, difference = found.ours or (None,) * 3, found.paper or (None,) * 2, found.difference or (None,) * 3
                rows.append((block, column.problem, column.name, method, *ours, *theirs, *difference))
    numbers = (
        "auc_del_negative",
        "ci95_clustered_low",
        "ci95_clustered_high",
        "paper",
        "paper_ci95",
        "difference",
        "ci95_low",
        "ci95_high",
    )
    texts = dict.fromkeys(("block", "problem", "experiment", "method"), pl.String)
    return pl.DataFrame(rows, schema={**texts, **dict.fromkeys(numbers, pl.Float64)}, orient="row")


def table1_page(columns: Sequence[DataColumn], *, profile: str, date: str, hardware: str) -> Table1Page:
    """The page of these columns. ``date`` and ``hardware`` are shown unchanged."""
    intro: tuple[str, ...] = (
        f"AUC-DEL₋, mean over networks and test points; larger is better. Profile {profile}, {date}, on {hardware}, "
        f"Python {platform.python_version()}.",
        "Ours: 95% interval by the seed-clustered bootstrap, with expanded percentiles because networks are few. Paper: its pooled 95% "
        "interval, which takes the points of one network as independent. Difference: ours - paper; its interval adds both in squares. A "
        "dash: not measured, or not in the paper.",
        "Areas are in logits. Their size depends on the model, its training and its data: with other sizes than the paper's, compare the "
        "order of the methods; the differences show how far apart the two set-ups are.",
    )
    if any(column.points["seed"].n_unique() < MIN_SEEDS for column in columns):
        intro += (f"With fewer than {MIN_SEEDS} networks an interval is about the range of the networks' means, which is too narrow.",)
    blocks = [_block(title, methods, columns) for title, methods in BLOCKS.items()]
    return Table1Page(
        "The paper's Table 1, and ours",
        intro,
        (
            ("The table", (*blocks, *_orders(columns), *_other_methods(columns))),
            ("The paper's statements, tested on our numbers", tuple(_claim_tables(columns))),
            ("Every method against the best one and the simple baselines", tuple(_contrast_table(column) for column in columns)),
            ("Tuned parameters", tuple(_tuned_tables(columns))),
            ("Differences of the set-ups, and their reasons", tuple(_difference_table(column) for column in columns if column.differs)),
            ("How ours was measured", tuple(_fact_table(column) for column in columns if column.facts)),
        ),
    )


def claim_results(column: DataColumn) -> list[tuple[str, list[ClaimResult]]]:
    """For each of the paper's claims about this data set: its statement, and the results of the comparisons that were measured."""
    found = []
    measured_methods = set(column.points["method"].unique().to_list())
    for claim in CLAIMS:
        if not claim.applies_to(column.paper):
            continue
        known = [one for one in claim.comparisons if {one.better, one.worse} <= measured_methods]
        found.append((claim.statement, [check_claim(column.points, one) for one in known]))
    return found


def _areas(run: Run) -> pl.DataFrame:
    return run.points().filter(pl.col("metric") == METRIC).select("method", "seed", "test_id", "value").collect()


def _block(title: str, methods: Mapping[str, str], columns: Sequence[DataColumn]) -> TextTable:
    rows: list[tuple[str, ...]] = []
    shown = {
        method: name for method, name in methods.items() if any(compared_cell(c, method) != CellComparison(None, None) for c in columns)
    }
    for column in columns:
        cells = [compared_cell(column, method) for method in shown]
        rows.append((column.title, "paper", *(_plus_minus(one.paper) for one in cells)))
        rows.append(("", "ours", *(_interval(one.ours) for one in cells)))
        rows.append(("", "difference", *(_interval(one.difference) for one in cells)))
    notes = ("† the last layer's parameters alone, as the paper has it for texts",) if any("†" in name for name in shown.values()) else ()
    return TextTable(title, ("data", "", *shown.values()), tuple(rows), notes)


def rank_correlation(column: DataColumn) -> tuple[int, float] | None:
    """How many methods have an area here and in the paper, random removal left out, and Kendall's tau-b of their two orders.

    None for fewer than three such methods.
    """
    from scipy.stats import kendalltau

    means = dict(column.points.group_by("method").agg(pl.col("value").mean()).iter_rows())
    shared = [method for method in column.paper.cells if method in means and method != RANDOM]
    if len(shared) < 3:
        return None
    theirs = [column.paper.cells[method][0] for method in shared]
    return len(shared), float(kendalltau(theirs, [means[method] for method in shared]).statistic)


def _orders(columns: Sequence[DataColumn]) -> list[TextTable]:
    rows = [(column.title, f"{found[0]}", f"{found[1]:+.2f}") for column in columns if (found := rank_correlation(column))]
    notes = (
        "Kendall's tau of the order of the methods' areas here with their order in the paper, random selection left out: 1 for the same "
        "order, 0 for an unrelated one, -1 for the reverse. It does not say how far apart two methods are.",
    )
    headings = ("data", "methods", "Kendall's tau")
    return [TextTable("Order of the methods, here and in the paper", headings, tuple(rows), notes)] if rows else []


def other_methods(columns: Sequence[DataColumn]) -> list[str]:
    """The measured methods that the paper's table does not have, in the order of their first data set."""
    known = {method for methods in BLOCKS.values() for method in methods}
    found = (method for column in columns for method in column.points["method"].unique(maintain_order=True).to_list())
    return [method for method in dict.fromkeys(found) if method not in known]


def _other_methods(columns: Sequence[DataColumn]) -> list[TextTable]:
    """A row a method, since there can be many of them; empty where there are none."""
    rows = [(method, *(_interval(compared_cell(column, method).ours) for column in columns)) for method in other_methods(columns)]
    return [TextTable(_OTHERS, ("method", *(column.title for column in columns)), tuple(rows))] if rows else []


def _claim_tables(columns: Sequence[DataColumn]) -> list[TextTable]:
    """The status of each statement on each data set, then a table a statement with its comparisons."""
    results = {column.name: dict(claim_results(column)) for column in columns}
    overview: list[tuple[str, ...]] = []
    tables = []
    for claim in CLAIMS:
        rows: list[tuple[str, ...]] = []
        statuses: dict[str, ClaimStatus] = {}
        for column in columns:
            if claim.statement not in results[column.name]:
                continue
            found = results[column.name][claim.statement]
            status = combined_status(one.status for one in found) if len(found) == len(claim.comparisons) else "undecided"
            statuses[column.name] = status
            rows += [_comparison_row(column, one) for one in found]
            rows.append((column.title, "all of them", "", status, ""))
        if rows:
            together = combined_status(statuses.values())
            rows.append(("all data sets here", "all of them", "", together, ""))
            overview.append((claim.statement, *(statuses.get(column.name, "-") for column in columns), together))
            tables.append(TextTable(claim.statement, _COMPARISON_HEADINGS, tuple(rows), (claim.interpretation,)))
    titles = ("statement", *(column.title for column in columns), "all data sets here")
    notes = (
        "A statement is confirmed if all its comparisons below are, and refuted if one is. A comparison is confirmed if its interval is "
        "above zero, refuted if it is below zero, and undecided otherwise.",
        "Differences are paired over (network, test point); their 95% intervals are clustered by seed and not corrected for their number. "
        f"With fewer than {MIN_SEEDS} networks every claim is undecided. Networks to decide: how many would exclude zero with probability "
        "0.8, if the true difference and the spread between networks were the measured ones.",
    )
    return [TextTable("Overview", titles, tuple(overview), notes), *tables] if tables else []


def _contrast_table(column: DataColumn) -> TextTable:
    """A row a method, best first: its area, and its paired difference from the best method and from each simple baseline."""
    methods = (
        column.points.group_by("method").agg(pl.col("value").mean()).sort("value", "method", descending=[True, False])["method"].to_list()
    )
    others = list(dict.fromkeys((methods[0], *column.simple)))

    def difference(method: str, other: str) -> str:
        if method == other:
            return ""
        found = check_claim(column.points, Claim(method, other))
        return _interval((found.mean, found.low, found.high))

    rows = [(method, _interval(compared_cell(column, method).ours), *(difference(method, other) for other in others)) for method in methods]
    notes = ("Differences are paired over (network, test point); their intervals are not corrected for their number.",)
    return TextTable(column.title, ("method", "area", *(f"minus {other}" for other in others)), tuple(rows), notes)


def _tuned_tables(columns: Sequence[DataColumn]) -> list[TextTable]:
    """Areas with the declared and the tuned parameter, and the paper's statements where the tuned methods replace the declared ones."""
    rows = []
    for column in columns:
        for declared in sorted(column.tuned):
            tuned = declared + _TUNED_SUFFIX
            found = check_claim(column.points, Claim(tuned, declared))
            areas = (_interval(compared_cell(column, method).ours) for method in (declared, tuned))
            rows.append((column.title, declared, *areas, _interval((found.mean, found.low, found.high))))
    notes = (
        f"A parameter is chosen on {TUNING_SEEDS} networks that are not in the table, by the mean area of its methods. The values are "
        "listed with how ours was measured. Where the declared value was chosen, the difference is 0. Differences are paired over "
        "(network, test point).",
    )
    headings = ("data", "method", "declared", "tuned", "tuned - declared")
    if not rows:
        return []
    replaced = [_with_tuned(column) for column in columns if column.tuned]
    comparisons = []
    for column in replaced:
        tested = {one.claim: one for _, found in claim_results(column) for one in found}
        comparisons += [_comparison_row(column, one) for claim, one in tested.items() if {claim.better, claim.worse} & column.tuned]
    overview = replace(_claim_tables(replaced)[0], title="The paper's statements with the tuned parameters", notes=())
    return [
        TextTable("Declared and tuned", headings, tuple(rows), notes),
        overview,
        *(replace(table, title=f"{table.title}, with the tuned parameters", notes=()) for table in _orders(replaced)),
        TextTable("Comparisons of the tuned methods", _COMPARISON_HEADINGS, tuple(comparisons)),
    ]


def _with_tuned(column: DataColumn) -> DataColumn:
    """The column with the tuned methods in place of the declared ones."""
    others = column.points.filter(~pl.col("method").is_in(column.tuned))
    return replace(column, points=others.with_columns(pl.col("method").str.strip_suffix(_TUNED_SUFFIX)))


def _comparison_row(column: DataColumn, found: ClaimResult) -> tuple[str, ...]:
    return column.title, _comparison(found.claim), _interval((found.mean, found.low, found.high)), found.status, _networks(found)


def _networks(result: ClaimResult) -> str:
    """Of an undecided claim alone."""
    if result.status != "undecided" or result.seeds_to_decide is None:
        return ""
    return f"{result.seeds_to_decide:,}" if result.seeds_to_decide <= _MANY else f"above {_MANY:,}"


def _comparison(claim: Claim) -> str:
    share = "" if claim.share == 1 else f"{claim.share:g} x "
    return f"{claim.better} - {share}{claim.worse}"


def _difference_table(column: DataColumn) -> TextTable:
    return TextTable(column.title, ("", "paper", "here", "why"), tuple(column.differs))


def _fact_table(column: DataColumn) -> TextTable:
    assert column.facts is not None
    return TextTable(f"{column.title}: run {column.name}", ("", ""), tuple(column.facts.items()))


def _plus_minus(value: tuple[float, float] | None) -> str:
    return "-" if value is None else f"{value[0]:.2f} ± {value[1]:.2f}"


def _interval(value: tuple[float, float | None, float | None] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = value
    return f"{mean:+.2f}" if low is None or high is None else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
