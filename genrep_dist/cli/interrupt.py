"""What a long command does when it is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from genrep_dist.cli.terminal import moves_cursor

if TYPE_CHECKING:
    from rich.console import Console

    from genrep_dist.runner.progress import ProgressCounter


@contextmanager
def interruptible(console: Console) -> Iterator[ProgressCounter]:
    """The progress of a long command. On the first SIGINT or SIGTERM: print progress and resume command, exit with 130 or 143."""
    from genrep_dist.cli.progress import ProgressBars, ProgressLines
    from genrep_dist.provenance import resume_command
    from genrep_dist.runner.progress import ProgressCounter
    from genrep_dist.runner.signals import Signals

    with_bars = moves_cursor(console)
    with ProgressBars(console) if with_bars else ProgressLines(console) as shown:
        progress = ProgressCounter(shown)

        def stopped() -> str:
            return f"{progress.summary()}\nto resume: {resume_command()}\n"

        # In a log at once; at a terminal after the bars, which would overwrite the text.
        signals = Signals(lambda: "" if with_bars else stopped())
        progress.check = signals.check
        try:
            with signals:
                yield progress
            return
        except KeyboardInterrupt:
            pass
    if with_bars:
        console.print(stopped(), markup=False, highlight=False, soft_wrap=True, end="")
    raise typer.Exit(signals.exit_code)
