"""Benchmarks. Each module runs as ``python -m tests.benchmarks.<name>`` and prints a Markdown report.

With ``--write`` it also writes the report to ``docs/benchmarks/<name>.md``. This file has what they share: tables, medians with quartiles,
and the description of the machine. No benchmark asserts a time.
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

from genrep_dist.provenance import processor_name

REPORTS = Path(__file__).parents[2] / "docs" / "benchmarks"


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """The median of ``values`` with their quartiles; for fewer than four values, with the smallest and the largest."""
    low, *_, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) >= 4 else (min(values), max(values))
    return f"{form.format(statistics.median(values))} ({form.format(low)} to {form.format(high)})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    head = [f"| {' | '.join(columns)} |", f"|{'|'.join(['---'] + ['---:'] * (len(columns) - 1))}|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


def measured_on(*packages: str) -> str:
    """One sentence: processor, cores, memory, threads, versions, and the load before the measurement."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    return (
        f"Measured on {processor_name()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB of memory, "
        f"{platform.system()}, Python {platform.python_version()}, {versions}; OMP_NUM_THREADS {threads}; "
        f"load of the minute before {os.getloadavg()[0]:.1f}: other work on the machine lengthens seconds, and ratios less."
    )


def peak_bytes() -> float:
    """The peak memory of this process since its program was started (Linux).

    That of ``getrusage`` begins with the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * float(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def publish(name: str, title: str, sections: Sequence[str], *, write: bool) -> None:
    """Print a report and, if ``write``, write it to ``docs/benchmarks``."""
    options = " ".join(argument for argument in sys.argv[1:] if argument != "--write")
    command = f"Made by `python -m tests.benchmarks.{name}{' ' + options if options else ''}`."
    text = "\n\n".join([f"# {title}", *sections, command]) + "\n"
    sys.stdout.write(text)
    if write:
        REPORTS.mkdir(parents=True, exist_ok=True)
        (REPORTS / f"{name}.md").write_text(text)
