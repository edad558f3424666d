"""Progress of a long command: bars at a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from genrep_dist.cli.display import clock_text
from genrep_dist.runner.pace import Pace
from genrep_dist.runner.progress import NoProgress
from genrep_dist.runner.progress import Progress as ProgressDisplay

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_ALL_LINES = 1.0
"""Of verbose output."""
_SHOWN_QUIETLY = ("warning:", "failed", "doctor: red", "doctor: the run goes on")


def times_text(elapsed: float, seconds_left: float | None) -> str:
    """'elapsed 0:20, ETA 2:10'; without ETA where it is not known, or nothing is left."""
    return f"elapsed {clock_text(elapsed)}" + (f", ETA {clock_text(seconds_left)}" if seconds_left else "")


class ProgressBars:
    """Progress at a terminal: one bar per stage, with rate, elapsed time and ETA; a step without units has a moving bar."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=14),
            _Count(),
            _Rate(),
            _Times(),
            console=console,
            speed_estimate_period=60,
        )
        self._task: TaskID | None = None
        self._step: TaskID | None = None
        self._pace = Pace()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._end_step()
        self._progress.stop()

    def stage(self, name: str, total: int, done: int) -> None:
        self._end_step()
        self._task = self._progress.add_task(name, total=total, completed=done, pace=Pace(time.monotonic))
        self._pace = Pace(time.monotonic)

    def step(self, name: str) -> None:
        self._end_step()
        self._step = self._progress.add_task(name, total=None, pace=None)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._task is not None:
            self._pace.add(units)
            self._progress.update(self._task, advance=units, pace=self._pace)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def _end_step(self) -> None:
        """The bar of a step is full when the next one begins."""
        if self._step is not None:
            self._progress.update(self._step, total=1, completed=1)
            self._step = None


NOTICED_SECONDS = 1.0
"""A log says how long a step took that took at least so long."""


class _Count(ProgressColumn):
    """'12/30'; nothing for a step without units."""

    def render(self, task: Task) -> Text:
        return Text("" if task.fields["pace"] is None else f"{int(task.completed)}/{int(task.total or 0)}", style="progress.download")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields["pace"].rate if task.fields["pace"] is not None else 0.0
        return Text(f"{rate:,.1f}/s" if rate else "", style="progress.percentage")


class _Times(ProgressColumn):
    def render(self, task: Task) -> Text:
        pace: Pace | None = task.fields["pace"]
        left = None if pace is None or task.finished or task.total is None else pace.seconds_left(task.total - task.completed)
        return Text(times_text((task.finished_time if task.finished else task.elapsed) or 0.0, left), style="progress.elapsed")


class ProgressLines:
    """Progress in a log: a line at the beginning and end of each stage, and every ten seconds; with ``verbose``, every second.

    ``write``: what writes a line; by default the console.
    """

    def __init__(self, console: Console | None = None, *, verbose: bool = False, write: Callable[[str], object] | None = None) -> None:
        self._console = console if console is not None or write is not None else Console()
        self._write = write
        self._verbose = verbose
        self._name, self._total, self._done = "", 0, 0
        self._pace, self._last = Pace(time.monotonic), 0.0
        self._step: tuple[str, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._end_step()

    def stage(self, name: str, total: int, done: int) -> None:
        self._end_step()
        self._name, self._total, self._done = name, total, done
        self._pace, self._last = Pace(time.monotonic), time.monotonic()
        self.message(f"{name}: {done} of {total} units done before")

    def step(self, name: str) -> None:
        self._end_step()
        self._step = name, time.monotonic()
        self.message(f"{name} ...")

    def _end_step(self) -> None:
        """Say how long a step took that was long enough to be noticed."""
        if self._step is not None:
            (name, began), self._step = self._step, None
            elapsed = time.monotonic() - began
            if elapsed >= NOTICED_SECONDS:
                self.message(f"{name}: done, elapsed {elapsed:.1f} s")

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self._done += units
        self._pace.add(units)
        now = time.monotonic()
        ended = self._done >= self._total
        if ended or now - self._last >= (SECONDS_BETWEEN_ALL_LINES if self._verbose else SECONDS_BETWEEN_LINES):
            self._last = now
            left = None if ended else self._pace.seconds_left(self._total - self._done)
            text = f"{self._name}: {self._done} of {self._total} units, {self._pace.rate:.1f}/s, {times_text(self._pace.elapsed, left)}"
            details = ", ".join(f"{name} {value:.4g}" for name, value in statistics.items()) if self._verbose else ""
            self.message(f"{text} (the last unit: {details})" if details else text)

    def message(self, text: str) -> None:
        if self._write is not None:
            self._write(text)
        elif self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class QuietLines(NoProgress):
    """Warnings and failures only."""

    def __init__(self, console: Console) -> None:
        self._lines = ProgressLines(console)

    def step(self, name: str) -> None:
        pass

    def message(self, text: str) -> None:
        if text.startswith(_SHOWN_QUIETLY):
            self._lines.message(text)


class SeveralDisplays:
    """Shows progress in several places, such as a terminal and a log file."""

    def __init__(self, displays: Sequence[ProgressDisplay]) -> None:
        self._displays = displays

    def stage(self, name: str, total: int, done: int) -> None:
        for display in self._displays:
            display.stage(name, total, done)

    def step(self, name: str) -> None:
        for display in self._displays:
            show: Callable[[str], object] | None = getattr(display, "step", None)
            if show is not None:
                show(name)

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        for display in self._displays:
            display.advance(units, statistics)

    def message(self, text: str) -> None:
        for display in self._displays:
            display.message(text)
