"""Progress of a long command: bars at a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from genrep_dist.cli.display import seconds_text

SECONDS_BETWEEN_LINES = 10.0


class ProgressBars:
    """Progress at a terminal: one bar per stage, with rate and time left."""

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
        self._started = 0.0
        self._new = 0

    def __enter__(self) -> ProgressBars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def stage(self, name: str, total: int, done: int) -> None:
        self._task = self._progress.add_task(name, total=total, completed=done, rate="")
        self._started, self._new = time.monotonic(), 0

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        if self._task is not None:
            self._new += units
            rate = self._new / max(time.monotonic() - self._started, 1e-9)
            self._progress.update(self._task, advance=units, rate=f"{rate:,.1f}/s")

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False)


class ProgressLines:
    """Progress in a log: a line at the beginning and end of each stage, and every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name, self._total, self._done, self._new = "", 0, 0, 0
        self._started = self._last = 0.0

    def __enter__(self) -> ProgressLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def stage(self, name: str, total: int, done: int) -> None:
        self._name, self._total, self._done, self._new = name, total, done, 0
        self._started = self._last = time.monotonic()
        self.message(f"{name}: {done} of {total} units done before")

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        self._done += units
        self._new += units
        now = time.monotonic()
        if self._done >= self._total or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self._new / max(now - self._started, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            self.message(f"{self._name}: {self._done} of {self._total} units, {rate:.1f}/s, about {seconds_text(left)} left")

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
