"""Tables and texts of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from genrep_dist.diagnostics import Finding
    from genrep_dist.evaluation.metrics.base import MetricInfo
    from genrep_dist.results import Run
    from genrep_dist.runner.dry_run import DryRun

COLOURS = {"green": "green", "amber": "yellow", "red": "bold red"}
"""Terminal styles of the doctor's colours."""


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
        guess = "" if dry_run.gpu_hours is None else f" (roughly {dry_run.gpu_hours:,.2g} GPU-hours)"
        kind = "GPU-hours" if dry_run.device == "cuda" else f"worker-hours of one CPU core each{guess}"
        written = bytes_text(sum(stage.bytes_written for stage in plan.stages))
        about = f"about {seconds_text(expected.total)} on {dry_run.slots} workers like this machine"
        lines.append(f"{about}: {dry_run.worker_hours:,.1f} {kind}; {written} written")
    if dry_run.refusal:
        lines.append(f"`genrep run` would refuse this plan here: {dry_run.refusal}")
    lines += [f"warning: {warning}" for warning in plan.warnings]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def show_summary(console: Console, finished: Run) -> None:
    """The tables of a finished run, one for each of its blocks, and where its report is."""
    from genrep_dist.evaluation.metrics.base import metric_infos
    from genrep_dist.report.tables import sorted_methods

    # Of the record: a table can be shown where the run's own kernels or metrics are not known.
    declared, metrics = finished.record["experiment"], finished.metrics()
    mains = [info for info in metric_infos().values() if info.is_main]
    for title, methods in (declared.get("blocks") or {"": declared["methods"]}).items():
        for info in mains:
            rows = {row["method"]: row for row in metrics.filter(metric=info.name).iter_rows(named=True)}
            # In the order of the report's tables.
            ordered = [rows[method] for method in sorted_methods(metrics, mains, methods) if method in rows]
            if ordered:
                _show_table(console, ", ".join(filter(None, (finished.name, title))), info, ordered)
    _show_metrics(console, finished)
    manifest = finished.manifest()
    if manifest is not None:
        from genrep_dist.store.paths import ResultPaths

        console.print(
            f"report: {finished.store.uri}/{ResultPaths(finished.name).file('report.html')}", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"MLflow: {manifest['tracking']['hint']}", markup=False, highlight=False, soft_wrap=True)


def _show_metrics(console: Console, finished: Run) -> None:
    """The means of the metrics that have no table of their own, a row a method; intervals are in the report."""
    from genrep_dist.evaluation.metrics.base import metric_infos
    from genrep_dist.report.tables import sorted_methods

    means = {(row["metric"], row["method"]): row["mean"] for row in finished.metrics().iter_rows(named=True)}
    infos = metric_infos()
    names = [name for name, info in infos.items() if not info.is_main and any(metric == name for metric, _ in means)]
    names += sorted({metric for metric, _ in means} - infos.keys())  # metrics that are not known here
    if not names:
        return
    rows = [
        (method, *(f"{means[name, method]:.3f}" if (name, method) in means else "-" for name in names))
        for method in sorted_methods(finished.metrics(), list(infos.values()), finished.record["experiment"]["methods"])
    ]
    heads = [f"{infos[name].title} ({infos[name].better} is better)" if name in infos else name for name in names]
    console.print(table(f"{finished.name}: other metrics", ("method", *heads), rows, numeric=range(1, len(names) + 1)))


def _show_table(console: Console, title: str, info: MetricInfo, rows: Sequence[dict[str, Any]]) -> None:
    """One metric with its intervals, a row a method, in the given order."""
    shown = [
        (
            row["method"],
            f"{row['mean']:+.3f}",
            "-" if row["ci95_clustered_low"] is None else f"[{row['ci95_clustered_low']:+.3f}, {row['ci95_clustered_high']:+.3f}]",
            "-" if row["ci95_pooled"] is None else f"± {row['ci95_pooled']:.3f}",
            f"{row['num_seeds']} x {row['num_points']}",
        )
        for row in rows
    ]
    columns = ("method", "mean", "95% clustered by seed", "95% pooled", "seeds x points")
    console.print(table(f"{title}: {info.title} ({info.better} is better)", columns, shown, numeric=(1, 2, 3, 4)))


def show_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """The doctor's findings as a table, and their number by colour."""
    from rich.markup import escape

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}"

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
    console.print(", ".join(f"{sum(f.colour == colour for f in findings)} {colour}" for colour in COLOURS), highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Iterable[int] = ()) -> Table:
    """A rich table; columns whose index is in ``numeric`` are right-aligned."""
    result = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="right" if index in numeric else "left", overflow="fold")
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


def seconds_text(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
