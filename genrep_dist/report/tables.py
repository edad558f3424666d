"""The measured numbers as tables that can go into a paper: one table a family of metrics, every cell a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from genrep_dist.evaluation.metrics import METRICS, Metric
from genrep_dist.evaluation.results import SCHEMAS, Judged
from genrep_dist.report.significance_marks import Marks

NOT_KNOWN = "–"
RANDOM = "random"
HEADINGS = {sign: METRICS[f"auc_del_{sign}"].title for sign in ("negative", "positive")}
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "Deletion": ("auc_del_negative", "auc_del_positive"),
    "Linear datamodeling": ("lds",),
    "Leave-one-out": ("loo_correlation",),
    "Brittleness": ("brittleness_flipped", "brittleness_removed"),
    "Mislabelled data": ("mislabel_auroc", "mislabel_inspection_area"),
}
"""Title -> metrics that share a table."""
INTERVALS = "Intervals: 95%, bootstrap over seeds (test points of one seed share its network)."
POOLED = "±: the pooled half-width 1.96 s / √(seeds × points), which treats all points as independent."
TWO_WAY = "Two-way: 95%, bootstrap over seeds and over test points, which all seeds share."


@dataclass(frozen=True)
class Cell:
    """One method's value of one metric, as text; a dash where nothing is known."""

    mean: str = NOT_KNOWN
    marks: str = ""
    interval: str = NOT_KNOWN
    two_way: str = NOT_KNOWN
    pooled: str = NOT_KNOWN
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method's line; ``cells`` in the order of the table's metrics, ``design`` is seeds × test points, or seeds."""

    method: str
    cells: tuple[Cell, ...]
    design: str

    @property
    def leads(self) -> bool:
        return self.cells[0].best


@dataclass(frozen=True)
class Table:
    """One family. ``blocks``: title (empty where the table is not divided) to rows. ``ceiling``: the noise ceiling of each metric."""

    title: str
    metrics: tuple[Metric, ...]
    two_way: bool
    pooled: bool
    blocks: tuple[tuple[str, tuple[Row, ...]], ...]
    ceiling: tuple[str, ...] | None
    notes: tuple[str, ...]

    @property
    def headings(self) -> list[str]:
        """Heads of all columns."""
        found = ["method"]
        for metric in self.metrics:
            found += [metric.title, "95% interval"] + ["two-way"] * self.two_way + ["pooled"] * self.pooled
        return [*found, "seeds × points" if any(metric.about_points for metric in self.metrics) else "seeds"]

    def texts(self, cell: Cell) -> list[str]:
        """What stands behind the mean, in the order of the headings."""
        return [cell.interval] + [cell.two_way] * self.two_way + [cell.pooled] * self.pooled

    @property
    def ceiling_cells(self) -> list[str]:
        """The last row's cells behind its name; empty where there is no such row."""
        beside = [""] * (self.two_way + self.pooled + 1)
        return [text for mean in self.ceiling or () for text in (mean, *beside)] + [""] * (self.ceiling is not None)


def signs_of(summary: pl.DataFrame) -> tuple[str, ...]:
    """The signs that the summary has columns for, "negative" first."""
    return tuple(sign for sign in HEADINGS if f"auc_del_{sign}" in summary.columns)


def columns_of(sign: str) -> tuple[str, str, str, str]:
    """The summary's columns of one sign: mean, pooled half-width, lower and upper end of the clustered interval."""
    suffix = "" if sign == "negative" else "_positive"
    return f"auc_del_{sign}", f"ci95_pooled{suffix}", f"ci95_clustered_low{suffix}", f"ci95_clustered_high{suffix}"


def all_metrics(summary: pl.DataFrame, judged: Judged) -> pl.DataFrame:
    """The metrics table of everything measured; a sign that ``judged`` says nothing of is taken from the summary."""
    frames = [judged.metrics.select(list(SCHEMAS["metrics"]))]
    for sign in signs_of(summary):
        if f"auc_del_{sign}" in judged.measured:
            continue
        mean, pooled, low, high = (pl.col(column) for column in columns_of(sign))
        columns = {
            "metric": pl.lit(f"auc_del_{sign}"),
            "method": pl.col("method"),
            "mean": mean,
            "ci95_pooled": pooled,
            "ci95_clustered_low": low,
            "ci95_clustered_high": high,
            "ci95_two_way_low": pl.lit(None, pl.Float64),
            "ci95_two_way_high": pl.lit(None, pl.Float64),
            "num_seeds": pl.col("num_seeds"),
            "num_points": pl.col("num_points"),
        }
        frames.append(summary.select(**columns))
    return pl.concat(frames)


def equal(first: float, second: float) -> bool:
    """Whether two means are the same number, but for how it was rounded."""
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)


def decimals_for(values: Iterable[float]) -> int:
    """Decimals that show three significant digits of the largest value; at least two, as in the paper, at most eight."""
    largest = max((abs(value) for value in values), default=0.0)
    return 2 if largest == 0 else min(8, max(2, 2 - math.floor(math.log10(largest))))


def number(value: float | None, decimals: int, minus: str = "-") -> str:
    """``value`` with a fixed number of decimals, never "-0.00"; a dash for what is not known."""
    if value is None:
        return NOT_KNOWN
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", minus)


def tables(
    summary: pl.DataFrame,
    judged: Judged,
    *,
    blocks: Mapping[str, Sequence[str]] | None = None,
    baseline: str | None = None,
    random: str = RANDOM,
    minus: str = "-",
) -> list[Table]:
    """A table for each family of which something was measured.

    Rows are the summary's methods in their order, or those of each of ``blocks``; methods without a metric of the family are left
    out. The best of a block of at least two is marked, equal ones share the mark. ``baseline`` is the experiment's own.
    """
    metrics = all_metrics(summary, judged)
    measured = set(metrics["metric"])
    maker = _Maker(metrics, judged, Marks(judged.comparisons, random, baseline), minus)
    divided = blocks or {"": summary["method"].to_list()}
    made = [
        maker.table(title, tuple(METRICS[name] for name in names if name in measured), divided)
        for title, names in FAMILIES.items()
        if measured.intersection(names)
    ]
    return [table for table in made if table.blocks]


class _Maker:
    def __init__(self, metrics: pl.DataFrame, judged: Judged, marks: Marks, minus: str) -> None:
        self.rows = {(row["metric"], row["method"]): row for row in metrics.iter_rows(named=True)}
        self.judged, self.marks, self.minus = judged, marks, minus

    def table(self, title: str, metrics: tuple[Metric, ...], blocks: Mapping[str, Sequence[str]]) -> Table:
        names = [metric.name for metric in metrics]
        mine = [row for (metric, _), row in self.rows.items() if metric in names]
        decimals = decimals_for(row["mean"] for row in mine)
        made = [(block, self._block(metrics, methods, decimals)) for block, methods in blocks.items()]
        shown = [cell.marks for _, rows in made for row in rows for cell in row.cells]
        two_way = any(row["ci95_two_way_low"] is not None for row in mine)
        pooled = title == "Deletion"
        ceiling, about_ceiling = self._ceiling(metrics, decimals)
        notes = [metric.explanation for metric in metrics] + about_ceiling
        notes += [INTERVALS] + [TWO_WAY] * two_way + [POOLED] * pooled + list(self.marks.notes(names, shown))
        return Table(title, metrics, two_way, pooled, tuple((block, rows) for block, rows in made if rows), ceiling, tuple(notes))

    def _block(self, metrics: tuple[Metric, ...], methods: Sequence[str], decimals: int) -> tuple[Row, ...]:
        best: dict[str, float] = {}
        for metric in metrics:
            means = [self.rows[metric.name, method]["mean"] for method in methods if (metric.name, method) in self.rows]
            if len(means) > 1:
                best[metric.name] = max(means) if metric.better == "larger" else min(means)
        rows = []
        for method in methods:
            records = [self.rows.get((metric.name, method)) for metric in metrics]
            known = [record for record in records if record is not None]
            if known:
                cells = [
                    Cell() if record is None else self._cell(metric, record, decimals, best)
                    for metric, record in zip(metrics, records, strict=True)
                ]
                points = any(metric.about_points for metric in metrics)
                designs = dict.fromkeys(f"{r['num_seeds']}" + f" × {r['num_points']}" * points for r in known)
                rows.append(Row(method, tuple(cells), ", ".join(designs)))
        return tuple(rows)

    def _cell(self, metric: Metric, record: Mapping[str, float | None], decimals: int, best: Mapping[str, float]) -> Cell:
        better = 1 if metric.better == "larger" else -1
        pooled = record["ci95_pooled"]
        return Cell(
            number(record["mean"], decimals, self.minus),
            self.marks.of(metric.name, str(record["method"]), better=better),
            self._interval(record["ci95_clustered_low"], record["ci95_clustered_high"], decimals),
            self._interval(record["ci95_two_way_low"], record["ci95_two_way_high"], decimals),
            NOT_KNOWN if pooled is None else f"± {number(pooled, decimals, self.minus)}",
            metric.name in best and equal(best[metric.name], float(record["mean"] or 0)),
        )

    def _interval(self, low: float | None, high: float | None, decimals: int) -> str:
        return NOT_KNOWN if low is None else f"[{number(low, decimals, self.minus)}, {number(high, decimals, self.minus)}]"

    def _ceiling(self, metrics: tuple[Metric, ...], decimals: int) -> tuple[tuple[str, ...] | None, list[str]]:
        means = [mean_ceiling(self.judged, metric.name) for metric in metrics]
        notes = []
        for metric in metrics:
            asked = self.judged.ceilings.filter(pl.col("metric") == metric.name)["ceiling"]
            known = len(asked) - asked.null_count()
            if known:
                part = "" if known == len(asked) else f" (known for {known} of {len(asked)} points)"
                notes.append(
                    f"Noise ceiling of {metric.title}: what scores without any error would reach, given that retrainings vary{part}."
                )
            elif len(asked):
                notes.append(f"Noise ceiling of {metric.title}: not known; it takes at least two fresh replicates of each retraining.")
        if all(mean is None for mean in means):
            return None, notes
        return tuple(number(mean, decimals, self.minus) for mean in means), notes


def mean_ceiling(judged: Judged, metric: str) -> float | None:
    """Mean noise ceiling over the test points where it is known; None where it is known for none."""
    known = judged.ceilings.filter(pl.col("metric") == metric).sort("seed", "test_id")["ceiling"].drop_nulls()
    return math.fsum(known) / len(known) if len(known) else None
