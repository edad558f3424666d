"""What a long command does when it is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import typer

from genrep_dist.cli.terminal import moves_cursor
from genrep_dist.cli.verbosity import current
from genrep_dist.provenance import resume_command

if TYPE_CHECKING:
    from rich.console import Console

    from genrep_dist.runner.progress import ProgressCounter

OUT_OF_TIME = 75
"""Exit code of a run that has used the time it was given: EX_TEMPFAIL of sysexits.h, for which batch systems can be told to try again."""


@contextmanager
def interruptible(console: Console) -> Iterator[ProgressCounter]:
    """The progress of a long command. On the first SIGINT or SIGTERM: print progress and resume command, exit with 130 or 143.

    So with OutOfTimeError, of a run with a time of its own, and exit with OUT_OF_TIME.
    """
    from genrep_dist.errors import OutOfTimeError
    from genrep_dist.runner.signals import Signals

    with_bars = moves_cursor(console) and not (current.quiet or current.verbose)
    progress: ProgressCounter | None = None

    def stopped() -> str:
        done = "nothing was computed yet" if progress is None else progress.summary()
        return f"{done}\nto resume: {resume_command()}\n"

    # In a log at once; at a terminal after the bars, which would overwrite the text.
    signals = Signals(lambda: "" if with_bars else stopped())
    try:
        with signals, ExitStack() as stack:
            progress = _counter(console, stack, with_bars=with_bars)
            progress.check = signals.check
            yield progress
        return
    except KeyboardInterrupt:
        text, code = f"stopped by {signals.name}; {stopped()}", signals.exit_code
        shown = with_bars
    except OutOfTimeError as error:
        text, code, shown = f"{error.what}; {error.got}\nto resume: {resume_command()}\n", OUT_OF_TIME, True
    if shown:
        console.print(text, markup=False, highlight=False, soft_wrap=True, end="")
    current.log(text)
    raise typer.Exit(code)


def _counter(console: Console, stack: ExitStack, *, with_bars: bool) -> ProgressCounter:
    """Counts units, and shows them at the console and in the log file, as the user has chosen."""
    from genrep_dist.cli.progress import ProgressBars, ProgressLines, QuietLines, SeveralDisplays
    from genrep_dist.runner.progress import Progress, ProgressCounter

    shown: Progress
    if current.quiet:
        shown = QuietLines(console)
    elif with_bars:
        shown = stack.enter_context(ProgressBars(console))
    else:
        shown = stack.enter_context(ProgressLines(console, verbose=current.verbose))
    if current.log_file is not None:
        shown = SeveralDisplays([shown, stack.enter_context(ProgressLines(verbose=True, write=current.log))])
    return ProgressCounter(shown)
