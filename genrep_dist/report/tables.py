"""Tables of the measured numbers: one table a metric, every cell a text. Markdown, LaTeX and the page are made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from genrep_dist.evaluation.metrics.base import MetricInfo
from genrep_dist.evaluation.tables import EvaluationTables
from genrep_dist.report.significance_marks import Marks

NOT_KNOWN = "–"
MINUS = "\N{MINUS SIGN}"
RANDOM = "random"
INTERVALS = "Intervals: 95%, bootstrap over seeds (test points of one seed share its network)."
POOLED = "±: the pooled half-width 1.96 s / √(seeds × points), which treats all points as independent."
TWO_WAY = "Two-way: 95%, bootstrap over seeds and over test points, which all seeds share."


@dataclass(frozen=True)
class Cell:
    """One method's value of one number, as text; a dash for what is not known."""

    mean: str = NOT_KNOWN
    marks: str = ""
    interval: str = NOT_KNOWN
    two_way: str = NOT_KNOWN
    pooled: str = NOT_KNOWN
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method's line; ``cells`` in the order of the table's numbers; ``design`` is seeds × test points, or seeds."""

    method: str
    cells: tuple[Cell, ...]
    design: str

    @property
    def leads(self) -> bool:
        return self.cells[0].best


@dataclass(frozen=True)
class Table:
    """One metric. ``blocks``: title (empty for a table without blocks) to rows. ``ceiling``: the noise ceiling of each number."""

    title: str
    numbers: tuple[MetricInfo, ...]
    two_way: bool
    pooled: bool
    blocks: tuple[tuple[str, tuple[Row, ...]], ...]
    ceiling: tuple[str, ...] | None
    notes: tuple[str, ...]

    @property
    def headings(self) -> list[str]:
        """Headings of all columns."""
        found = ["method"]
        for info in self.numbers:
            found += [info.title, "95% interval"] + ["two-way"] * self.two_way + ["pooled"] * self.pooled
        return [*found, "seeds × points" if any(info.about_points for info in self.numbers) else "seeds"]

    def texts(self, cell: Cell) -> list[str]:
        """The texts after the mean, in the order of the headings."""
        return [cell.interval] + [cell.two_way] * self.two_way + [cell.pooled] * self.pooled

    @property
    def ceiling_cells(self) -> list[str]:
        """The cells of the last row after its name; empty if there is no such row."""
        beside = [""] * (self.two_way + self.pooled + 1)
        return [text for mean in self.ceiling or () for text in (mean, *beside)] + [""] * (self.ceiling is not None)


def equal(first: float, second: float) -> bool:
    """Whether two means are equal up to rounding."""
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)


def decimals_for(values: Iterable[float]) -> int:
    """Decimals that show three significant digits of the largest value; at least two, as in the paper, at most eight."""
    largest = max((abs(value) for value in values), default=0.0)
    return 2 if largest == 0 else min(8, max(2, 2 - math.floor(math.log10(largest))))


def number(value: float | None, decimals: int, minus: str = "-") -> str:
    """``value`` with a fixed number of decimals, never "-0.00"; a dash for None."""
    if value is None:
        return NOT_KNOWN
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", minus)


def result_tables(
    tables: EvaluationTables,
    methods: Sequence[str],
    *,
    blocks: Mapping[str, Sequence[str]] | None = None,
    baseline: str | None = None,
    random: str = RANDOM,
    minus: str = "-",
) -> list[Table]:
    """A table for each measured metric.

    Rows are ``methods``, or those of each of ``blocks``, in the order of :func:`sorted_methods`; methods without a metric are left out
    of its table. The best of a
    block of at least two is marked, and so are ties. ``baseline`` is the one that the experiment declares.
    """
    writer = _TableWriter(tables, Marks(tables.comparisons, random, baseline), minus)
    divided = blocks or {"": methods}
    made = [
        writer.table(metric.title, tuple(info for info in metric.numbers if info.name in tables.measured), divided)
        for metric in tables.measured_metrics
    ]
    return [table for table in made if table.blocks]


def sorted_methods(metrics: pl.DataFrame, numbers: Sequence[MetricInfo], methods: Sequence[str]) -> list[str]:
    """``methods`` by their means of the first of ``numbers``, best first; equal ones in their order, those without a value last.

    This is the order of the rows in every table: of the terminal, the report, table.md, Python and the tracker.
    """
    for info in numbers:
        rows = metrics.filter((pl.col("metric") == info.name) & pl.col("method").is_in(list(methods)))
        if rows.height:
            mean = dict(rows.select("method", "mean").iter_rows())
            return sorted(methods, key=lambda name: -info.direction * mean[name] if name in mean else math.inf)
    return list(methods)


class _TableWriter:
    def __init__(self, tables: EvaluationTables, marks: Marks, minus: str) -> None:
        self.rows = {(row["metric"], row["method"]): row for row in tables.metrics.iter_rows(named=True)}
        self.tables, self.marks, self.minus = tables, marks, minus

    def table(self, title: str, numbers: tuple[MetricInfo, ...], blocks: Mapping[str, Sequence[str]]) -> Table:
        names = [info.name for info in numbers]
        mine = [row for (metric, _), row in self.rows.items() if metric in names]
        decimals = decimals_for(row["mean"] for row in mine)
        made = [(block, self._block(numbers, methods, decimals)) for block, methods in blocks.items()]
        shown = [cell.marks for _, rows in made for row in rows for cell in row.cells]
        two_way = any(row["ci95_two_way_low"] is not None for row in mine)
        pooled = any(info.is_main for info in numbers)
        ceiling, about_ceiling = self._ceiling(numbers, decimals)
        notes = [info.explanation for info in numbers] + about_ceiling
        notes += [INTERVALS] + [TWO_WAY] * two_way + [POOLED] * pooled + list(self.marks.notes(names, shown))
        return Table(title, numbers, two_way, pooled, tuple((block, rows) for block, rows in made if rows), ceiling, tuple(notes))

    def _block(self, numbers: tuple[MetricInfo, ...], methods: Sequence[str], decimals: int) -> tuple[Row, ...]:
        best: dict[str, float] = {}
        for info in numbers:
            means = [self.rows[info.name, method]["mean"] for method in methods if (info.name, method) in self.rows]
            if len(means) > 1:
                best[info.name] = max(means) if info.better == "larger" else min(means)
        has_points = any(info.about_points for info in numbers)
        rows = []
        for method in sorted_methods(self.tables.metrics, numbers, methods):
            records = [self.rows.get((info.name, method)) for info in numbers]
            known = [record for record in records if record is not None]
            if known:
                cells = tuple(self._cell(info, record, decimals, best) for info, record in zip(numbers, records, strict=True))
                designs = dict.fromkeys(f"{r['num_seeds']}" + f" × {r['num_points']}" * has_points for r in known)
                rows.append(Row(method, cells, ", ".join(designs)))
        return tuple(rows)

    def _cell(self, info: MetricInfo, record: Mapping[str, float | None] | None, decimals: int, best: Mapping[str, float]) -> Cell:
        if record is None:
            return Cell()
        pooled = record["ci95_pooled"]
        return Cell(
            number(record["mean"], decimals, self.minus),
            self.marks.for_method(info.name, str(record["method"]), better=info.direction),
            self._interval(record["ci95_clustered_low"], record["ci95_clustered_high"], decimals),
            self._interval(record["ci95_two_way_low"], record["ci95_two_way_high"], decimals),
            NOT_KNOWN if pooled is None else f"± {number(pooled, decimals, self.minus)}",
            info.name in best and equal(best[info.name], float(record["mean"] or 0)),
        )

    def _interval(self, low: float | None, high: float | None, decimals: int) -> str:
        return NOT_KNOWN if low is None else f"[{number(low, decimals, self.minus)}, {number(high, decimals, self.minus)}]"

    def _ceiling(self, numbers: tuple[MetricInfo, ...], decimals: int) -> tuple[tuple[str, ...] | None, list[str]]:
        means = [mean_ceiling(self.tables, info.name) for info in numbers]
        notes = []
        for info in numbers:
            rows = self.tables["ceilings"].filter(pl.col("metric") == info.name)["ceiling"]
            known = len(rows) - rows.null_count()
            if known:
                part = "" if known == len(rows) else f" (known for {known} of {len(rows)} points)"
                notes.append(f"Noise ceiling of {info.title}: the value of perfect scores, given how much retrainings vary{part}.")
            elif len(rows):
                notes.append(f"Noise ceiling of {info.title}: not known; it needs at least two fresh replicates of each retraining.")
        if all(mean is None for mean in means):
            return None, notes
        return tuple(number(mean, decimals, self.minus) for mean in means), notes


def mean_ceiling(tables: EvaluationTables, metric: str) -> float | None:
    """Mean noise ceiling over the test points for which it is known; None if it is known for none."""
    known = tables["ceilings"].filter(pl.col("metric") == metric).sort("seed", "test_id")["ceiling"].drop_nulls()
    return math.fsum(known) / len(known) if len(known) else None
