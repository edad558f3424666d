"""The tables of a finished run, as `genrep run` and `genrep report` show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from genrep_dist.cli.display import table
from genrep_dist.evaluation.metrics.base import MetricInfo, metric_infos
from genrep_dist.report.tables import sorted_methods
from genrep_dist.results import Run
from genrep_dist.store.paths import ResultPaths


def summary_record(finished: Run) -> dict[str, Any]:
    """What :func:`show_summary` shows and the comparisons of the methods, as plain data for JSON."""
    manifest = finished.manifest() or {}
    return {
        "experiment": finished.name,
        "store": finished.store.uri,
        "metrics": finished.metrics().to_dicts(),
        "comparisons": finished.comparisons().to_dicts(),
        "report": f"{finished.store.uri}/{ResultPaths(finished.name).file('report.html')}",
        "mlflow": manifest.get("tracking", {}).get("hint"),
    }


def show_summary(console: Console, finished: Run) -> None:
    """The tables of a finished run, one for each of its blocks, and where its report is."""
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
        console.print(
            f"report: {finished.store.uri}/{ResultPaths(finished.name).file('report.html')}", markup=False, highlight=False, soft_wrap=True
        )
        console.print(f"MLflow: {manifest['tracking']['hint']}", markup=False, highlight=False, soft_wrap=True)


def _show_metrics(console: Console, finished: Run) -> None:
    """The means of the metrics that have no table of their own, a row a method; intervals are in the report."""
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
    columns = ("method", "mean", "95% interval", "pooled", "seeds x points")
    console.print(table(f"{title}: {info.title} ({info.better} is better)", columns, shown, numeric=(1, 2, 3, 4)))
