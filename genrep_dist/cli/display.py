"""Tables and texts of the command line."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from genrep_dist.diagnostics import Finding
    from genrep_dist.runner.cleanup import Removal
    from genrep_dist.runner.dry_run import DryRun

LONGEST_NAME = 30
"""Characters of a name that a narrow table does not break."""
COLOURS = {"green": "green", "amber": "yellow", "red": "bold red"}
"""Terminal styles of the doctor's colours."""
LINE_WIDTH = 80
"""Columns of a finding that is shown in one line."""


def show_plan(console: Console, dry_run: DryRun) -> None:
    """A plan as a table, with its totals and conditions below."""
    plan, status, expected = dry_run.plan, dry_run.status, dry_run.expected
    rows = [
        (
            stage.name,
            # The plan has only an upper bound of distinct retrainings; the store may have the exact number.
            f"{plan.retrainings_requested:,} requested" if stage.name == "retrain" else stage.what,
            f"{status[stage.name].total:,}",
            f"{status[stage.name].done:,}",
            bytes_text(stage.bytes_written),
            bytes_text(stage.peak_bytes),
            seconds_text(expected.stages[stage.name]) if expected else "-",
        )
        for stage in plan.stages
    ]
    size = f"{plan.shape.num_parameters:,} parameters" if plan.shape.has_module else "models with predictions only"
    title = f"{plan.experiment.name}: {plan.shape.num_train:,} training samples, {size}"
    console.print(table(title, ("stage", "what", "units", "done", "writes", "memory", "time"), rows, numeric=(2, 3, 4, 5, 6)))
    retrain, stop, tune = status["retrain"], plan.experiment.stop, plan.experiment.tune
    bound = "" if retrain.exact else "at most "
    lines = [
        f"retrainings: {plan.retrainings_requested:,} requested, {bound}{retrain.total:,} after deduplication, {retrain.done:,} done before"
    ]
    if retrain.in_ledger:
        lines.append(
            f"the ledger has {retrain.in_ledger:,} more models of this training: which of them the run needs is known when it has its "
            "scores"
        )
    if stop is not None:
        lines.append(
            f"this is the worst case, {stop.max_seeds} seeds: the run stops after at least {stop.min_seeds} seeds, when the interval of "
            f"{stop.metric} of every method is at most ± {stop.half_width:g}"
        )
    if tune is not None:
        lines.append(
            f"before the run, {', '.join(tune.values_by_parameter)} is tuned: {tune.combinations} values on {len(tune.seeds)} seeds that "
            "are not reported (not included in these numbers)"
        )
    if expected:
        guess = "" if dry_run.gpu_hours is None else f" (a guess: {hours_text(dry_run.gpu_hours)} GPU-hours)"
        kind = "GPU-hours" if dry_run.device == "cuda" else f"worker-hours of one CPU core each{guess}"
        written = bytes_text(sum(stage.bytes_written for stage in plan.stages))
        starting = seconds_text(expected.overhead_seconds)
        where = "in one process" if dry_run.in_process else f"on all {dry_run.slots} workers"
        lines.append(
            f"time: of each stage {where}, for what is not done; the total has {starting} more to start, to evaluate and to publish"
        )
        small = "in one process, as there is less than a minute of work (with --ray: on workers)"
        where = small if dry_run.in_process else f"on {dry_run.slots} workers like this machine"
        about = f"about {seconds_text(expected.total)} {where}"
        lines.append(f"{about}: {hours_text(dry_run.worker_hours)} {kind}; {written} written")
    if dry_run.refusal:
        lines.append(f"`genrep run` would refuse this plan here: {dry_run.refusal}")
    lines += [f"warning: {warning}" for warning in dry_run.warnings]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def show_findings(console: Console, title: str, findings: Sequence[Finding], *, every: bool = False) -> None:
    """The doctor's findings that are not green, a line each, and their number by colour; with ``every`` all of them as a table."""
    from rich.markup import escape

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

    counts = ", ".join(f"{sum(f.colour == colour for f in findings)} {colour}" for colour in COLOURS)
    if not every:
        from rich.text import Text

        for f in sorted(findings, key=lambda f: list(COLOURS).index(f.colour), reverse=True):
            if f.colour != "green":
                measured = "" if f.number is None or f.bound is None else f"{number(f.number)}, bound {number(f.bound)}: "
                first, *others = f.name.split(", ")  # of checks that failed with one error
                name = f"{first} and {len(others)} more" if others else first
                line = Text.assemble((f"{f.colour:5}", COLOURS[f.colour]), f" {name}: {measured}{f.text.partition(';')[0]}")
                console.print(line, no_wrap=True, overflow="ellipsis", crop=True, width=min(console.width, LINE_WIDTH))
        console.print(f"{title}: {counts}", markup=False, highlight=False)
        console.print("--all shows all findings, and what to do", markup=False, highlight=False)
        return
    rows = [
        (
            f"[{COLOURS[f.colour]}]{f.colour}[/]",
            f.name,
            number(f.number),
            number(f.bound),
            "-" if f.seed is None else str(f.seed),
            escape(f.text),
            escape(f.remedy) or "-",
        )
        for f in findings
    ]
    console.print(table(title, ("", "check", "number", "bound", "seed", "found", "what to do"), rows, numeric=(2, 3, 4)))
    console.print(counts, highlight=False)


def show_removals(console: Console, title: str, removals: Sequence[Removal], *, deleted: bool) -> None:
    """What was deleted, or would be, by the part of the store."""
    if not removals:
        console.print(f"{title}: nothing", markup=False, highlight=False, soft_wrap=True)
        return
    parts: dict[str, list[Removal]] = {}
    for removal in removals:
        parts.setdefault(removal.what, []).append(removal)
    rows = [
        (part, f"{len(of):,}", f"{sum(one.files for one in of):,}", bytes_text(sum(one.bytes for one in of))) for part, of in parts.items()
    ]
    total = ("total", f"{len(removals):,}", f"{sum(one.files for one in removals):,}", bytes_text(sum(one.bytes for one in removals)))
    console.print(table(title, ("part", "entries", "files", "size"), [*rows, total], numeric=(1, 2, 3)))
    console.print("deleted" if deleted else "nothing was deleted: add --yes to delete it", highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Iterable[int] = ()) -> Table:
    """A rich table; columns whose index is in ``numeric`` are right-aligned."""
    result = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        # Names, in the first column, are broken last.
        widest = min(max((Text.from_markup(row[0]).cell_len for row in rows), default=0), LONGEST_NAME) if index == 0 else None
        result.add_column(column, justify="right" if index in numeric else "left", overflow="fold", min_width=widest)
    for row in rows:
        result.add_row(*row)
    return result


def bytes_text(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def time_text(seconds: float | None) -> str:
    """Unix seconds as local time, to the minute."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def hours_text(hours: float) -> str:
    """2.5 -> '2.5', 0.0123 -> '0.012', 1e-8 -> 'under 0.01'."""
    if hours < 0.01:
        return "under 0.01"
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def clock_text(seconds: float) -> str:
    """75 -> '1:15', 3675 -> '1:01:15'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_text(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
