"""What the command line shows: tables, bars for a person at a terminal, plain lines for a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from polars import DataFrame

    from genrep_dist.results import Run
    from genrep_dist.runner.dry_run import Outlook
    from genrep_dist.runner.heartbeat import RunState
    from genrep_dist.workflow.status import StageStatus

PLAIN_LINE_SECONDS = 10.0


class Bars:
    """Progress for a terminal: one bar a stage, with rate and time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<13}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>10}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._began = 0.0
        self._new = 0

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int, done: int) -> None:
        self._task = self._progress.add_task(name, total=total, completed=done, rate="")
        self._began, self._new = time.monotonic(), 0

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._task is not None:
            self._new += units
            rate = self._new / max(time.monotonic() - self._began, 1e-9)
            self._progress.update(self._task, advance=units, rate=f"{rate:,.1f}/s")

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False)


class Lines:
    """Progress for a log: a line when a stage begins and ends, and every ten seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name, self._total, self._done, self._new = "", 0, 0, 0
        self._began = self._last = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def stage(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done, self._new = name, total, done, 0
        self._began = self._last = time.monotonic()
        self.message(f"{name}: {done} of {total} units done before")

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self._done += units
        self._new += units
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= PLAIN_LINE_SECONDS:
            self._last = now
            rate = self._new / max(now - self._began, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            self.message(f"{self._name}: {self._done} of {self._total} units, {rate:.1f}/s, about {seconds_text(left)} left")

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def status_text(title: str, stages: Sequence[StageStatus], state: RunState | None, notes: Sequence[str] = ()) -> Group:
    """How far a run is: its stages as the store has them, and what its last run says of itself."""
    live = {} if state is None or state.state != "running" else state.record["stages"]
    rows = []
    for stage in stages:
        now = live.get(stage.name, {})
        ahead = now.get("seconds_left")
        rows.append(
            (
                stage.name,
                f"{stage.done:,}",
                ("" if stage.exact else "at most ") + f"{stage.total:,}",
                f"{100 * (1 - stage.missing_share):.0f} %",
                f"{now['running']:,}" if now else "-",
                f"{stage.total - stage.done:,}",
                f"{now['rate']:,.1f}/s" if now and now["rate"] else "-",
                seconds_text(ahead) if ahead else "-",
            )
        )
    columns = ("stage", "done", "of", "share", "running", "left", "rate", "time left")
    lines = [*(state_lines(state) if state is not None else []), *notes]
    return Group(table(title, columns, rows, numeric=range(1, 8)), *(Text(line) for line in lines))


def state_lines(state: RunState) -> list[str]:
    """What is known of a run's life, and of what failed in it."""
    record, silent = state.record, seconds_text(state.silent_seconds)
    where = f"process {record['pid']} on {record['host']}"
    said = {
        "running": f"running: {where}, last sign of life {silent} ago",
        "dead": f"dead, or cut off from the store: {where} said that it runs, and nothing since {silent}",
        "stopped": f"stopped on request {silent} ago ({where})",
        "failed": f"failed {silent} ago ({where}): {record['error']}",
        "finished": f"ended {silent} ago ({where})",
    }
    lines = [said[state.state]]
    failures = record["failures"]
    if failures["by_kind"]:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(failures["by_kind"].items()))
        lines.append(f"units that failed for good: {kinds}; the first: {failures['named'][0]}")
    if failures["retried"]:
        lines.append(f"attempts that failed and were made again: {failures['retried']:,}")
    return lines


def stop_text(stop: dict[str, Any]) -> str:
    """How far a run is on its way to the interval that was asked for."""
    if not stop["rounds"]:
        return (
            f"{stop['metric']}: first round, {stop['min_seeds']} seeds; asked for ± {stop['half_width']:g}, at most {stop['max_seeds']} "
            "seeds; how many are projected is known after it"
        )
    last = stop["rounds"][-1]
    known = (
        f"{stop['metric']}: ± {last['half_width']:.3g} ({last['method']}) after {last['seeds']} seeds, asked for ± {stop['half_width']:g}"
    )
    if stop["reached"]:
        return f"{known}: reached"
    if last["seeds"] >= stop["max_seeds"]:
        return f"{known}: not reached with all {stop['max_seeds']} seeds"
    return f"{known}; about {last['projected']} seeds projected, at most {stop['max_seeds']}"


def show_summary(console: Console, finished: Run) -> None:
    """The tables of a judged run, one for each of its blocks, and where its report is."""
    from genrep_dist.report.build import block_of

    summary = finished.summary()
    blocks = finished.plan.experiment.blocks
    for title, methods_of_block in blocks.items():
        _show_table(console, f"{finished.name}, {title}", block_of(summary, methods_of_block), ranked=False)
    if not blocks:
        _show_table(console, finished.name, summary, ranked=True)
    _show_metrics(console, finished)
    manifest = finished.manifest()
    if manifest is not None:
        from genrep_dist.store.paths import ResultPaths

        console.print(
            f"report: {finished.store.uri}/{ResultPaths(finished.name).file('report.html')}", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"MLflow: {manifest['tracking']['hint']}", markup=False, highlight=False, soft_wrap=True)


def _show_metrics(console: Console, finished: Run) -> None:
    """The means of the metrics beside the deletion curves, a row a method; intervals are in the report."""
    from genrep_dist.evaluation.metrics import METRICS

    judged = finished.judged()
    names = [name for name in judged.measured if not name.startswith("auc_del")]
    if not names:
        return
    means = {(row["metric"], row["method"]): row["mean"] for row in judged.metrics.iter_rows(named=True)}
    rows = [
        (method, *(f"{means[name, method]:.3f}" if (name, method) in means else "-" for name in names))
        for method in finished.plan.experiment.methods
    ]
    heads = [f"{METRICS[name].title} ({METRICS[name].better} is better)" for name in names]
    console.print(table(f"{finished.name}: other metrics", ("method", *heads), rows, numeric=range(1, len(names) + 1)))


def _show_table(console: Console, name: str, summary: DataFrame, *, ranked: bool) -> None:
    """One table a sign; ``ranked``: best first, otherwise in the order given."""

    def interval(low: Any, high: Any) -> str:
        return "-" if low is None else f"[{low:+.3f}, {high:+.3f}]"

    for sign, suffix in (("negative", ""), ("positive", "_positive")):
        if f"auc_del_{sign}" not in summary.columns:
            continue
        rows = [
            (
                row["method"],
                f"{row[f'auc_del_{sign}']:+.3f}",
                interval(row[f"ci95_clustered_low{suffix}"], row[f"ci95_clustered_high{suffix}"]),
                "-" if row[f"ci95_pooled{suffix}"] is None else f"± {row[f'ci95_pooled{suffix}']:.3f}",
                f"{row['num_seeds']} x {row['num_points']}",
            )
            for row in (summary.sort(f"auc_del_{sign}", descending=sign == "negative") if ranked else summary).iter_rows(named=True)
        ]
        title = f"{name}: AUC-DEL_{'-' if sign == 'negative' else '+'} ({'larger' if sign == 'negative' else 'smaller'} is better)"
        columns = ("method", "AUC", "95% clustered by seed", "95% pooled", "seeds x points")
        console.print(table(title, columns, rows, numeric=(1, 2, 3, 4)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> Table:
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


def show_outlook(console: Console, outlook: Outlook) -> None:
    """A plan as a table, and what surrounds it in sentences."""
    plan, status, expected = outlook.plan, outlook.status, outlook.expected
    rows = [
        (
            stage.name,
            # The plan alone knows only a bound of the distinct ones; the store may know better.
            f"{plan.retrainings_asked:,} asked" if stage.name == "retrain" else stage.what,
            f"{status[stage.name].total:,}",
            f"{status[stage.name].done:,}",
            bytes_text(stage.bytes_written),
            bytes_text(stage.peak_bytes),
            seconds_text(expected.stages[stage.name]) if expected else "-",
        )
        for stage in plan.stages
    ]
    title = f"{plan.experiment.name}: {plan.shape.num_train:,} training samples, {plan.shape.num_parameters:,} parameters"
    console.print(table(title, ("stage", "what", "units", "done", "writes", "memory", "time"), rows, numeric=(2, 3, 4, 5, 6)))
    retrain, stop, tune = status["retrain"], plan.experiment.stop, plan.experiment.tune
    bound = "" if retrain.exact else "at most "
    lines = [f"retrainings: {plan.retrainings_asked:,} asked, {bound}{retrain.total:,} after de-duplication, {retrain.done:,} done before"]
    if stop is not None:
        lines.append(
            f"this is the worst case, {stop.max_seeds} seeds: it stops from {stop.min_seeds} seeds on, when {stop.metric} of every method "
            f"is known to ± {stop.half_width:g}"
        )
    if tune is not None:
        lines.append(
            f"before it, {tune.parameter} is tuned: {len(tune.values)} values on {len(tune.seeds)} seeds that are not reported "
            "(not counted here)"
        )
    if expected:
        guess = "" if outlook.gpu_hours is None else f" (or, as a guess, {outlook.gpu_hours:,.2g} GPU-hours)"
        kind = "GPU-hours" if outlook.device == "cuda" else f"worker-hours of one CPU core each{guess}"
        written = bytes_text(sum(stage.bytes_written for stage in plan.stages))
        about = f"about {seconds_text(expected.total)} on {outlook.slots} workers like this machine"
        lines.append(f"{about}: {outlook.worker_hours:,.1f} {kind}; {written} written")
    if outlook.refusal:
        lines.append(f"here `genrep run` would refuse it: {outlook.refusal}")
    for line in lines:
        console.print(line, markup=False, highlight=False)
