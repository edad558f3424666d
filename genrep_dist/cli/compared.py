"""How `genrep compare` shows two runs."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from genrep_dist.cli.display import table
from genrep_dist.evaluation.metrics.base import metric_infos
from genrep_dist.results.compare import Comparison

MAX_VALUE = 60
"""Characters of a value of the configuration that are shown."""


def show_comparison(console: Console, found: Comparison) -> None:
    """A table for each metric, and one of the configuration."""
    infos = metric_infos()
    for metric in dict.fromkeys(found.methods["metric"]):
        rows = list(found.methods.filter(metric=metric).iter_rows(named=True))
        info = infos.get(metric)
        title = metric if info is None else f"{info.title} ({info.better} is better)"
        columns = ("method", found.first, found.second, "difference", "95% interval")
        console.print(table(title, columns, [_row(row) for row in rows], numeric=(1, 2, 3, 4)))
    paired = {row for row in found.methods["paired"] if row is not None}
    console.print(f"difference: {found.second} - {found.first}, {_pairing(paired)}", markup=False, highlight=False, soft_wrap=True)
    for warning in found.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if not found.changes:
        console.print("configuration: no difference", highlight=False)
        return
    changes = [(change.field, _text(change.first), _text(change.second)) for change in found.changes]
    console.print(table("configuration: what differs", ("field", found.first, found.second), changes))


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    means = tuple("-" if row[name] is None else f"{row[name]:+.3f}" for name in ("first", "second", "difference"))
    interval = "-" if row["ci95_low"] is None else f"[{row['ci95_low']:+.3f}, {row['ci95_high']:+.3f}]"
    return (row["method"], *means, interval)


def _pairing(paired: set[bool]) -> str:
    if not paired:
        return "no method is in both"
    return "paired by seed" if paired == {True} else "of independent seeds" if paired == {False} else "paired where seeds are the same"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 3]}..."
