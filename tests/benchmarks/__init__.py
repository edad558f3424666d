"""What is measured: each module here runs as ``python -m tests.benchmarks.<name>`` and prints a Markdown report.

With ``--write`` the report also goes to ``docs/benchmarks/<name>.md``. This file holds what they share: a table, a number with its
spread, and what it was measured on. Nothing asserts a time; whoever runs it reads it.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

REPORTS = Path(__file__).parents[2] / "docs" / "benchmarks"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """The median of ``values`` and their quartiles; of fewer than four values the smallest and the largest."""
    low, *_, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) >= 4 else (min(values), max(values))
    return f"{form.format(statistics.median(values))} ({form.format(low)} to {form.format(high)})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    head = [f"| {' | '.join(columns)} |", f"|{'|'.join(['---'] + ['---:'] * (len(columns) - 1))}|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def measured_on(*packages: str) -> str:
    """One sentence: processor, cores, memory, threads, versions, and how busy the machine was before."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return (
        f"Measured on {_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}; OMP_NUM_THREADS {threads}; "
        f"load of the minute before {os.getloadavg()[0]:.1f}: other work on the machine lengthens seconds, and ratios less."
    )


def publish(name: str, title: str, sections: Sequence[str], *, write: bool) -> None:
    """Print a report and, if ``write``, put it where the documents are."""
    options = " ".join(argument for argument in sys.argv[1:] if argument != "--write")
    command = f"Made by `python -m tests.benchmarks.{name}{' ' + options if options else ''}`."
    text = "\n\n".join([f"# {title}", *sections, command]) + "\n"
    sys.stdout.write(text)
    if write:
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / f"{name}.md").write_text(text)


def _processor() -> str:
    """The processor's own name, where the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
