"""Progress of ``gr.run`` in a notebook and at a terminal: one line, which is written again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from genrep_dist.runner.progress import NoProgress, Progress

SECONDS_BETWEEN_LINES = 0.2


class LineProgress:
    """A :class:`~genrep_dist.runner.progress.Progress` with one line for the present stage; messages have their own lines.

    ``rewrite`` shows a text in the place of the last one, ``keep`` leaves it there and writes another line. ``clock`` in seconds.
    """

    def __init__(
        self, rewrite: Callable[[str], object], keep: Callable[[str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rewrite, self._keep, self._clock = rewrite, keep, clock
        self._name, self._total, self._done, self._new = "", 0, 0, 0
        self._began = self._stage_began = self._shown = clock()

    def stage(self, name: str, total: int, done: int) -> None:
        """As in :class:`~genrep_dist.runner.progress.Progress`."""
        self._name, self._total, self._done, self._new = name, total, done, 0
        self._stage_began = self._clock()
        self._show()

    def advance(self, units: int, statistics: Mapping[str, float]) -> None:
        """As in :class:`~genrep_dist.runner.progress.Progress`."""
        self._done += units
        self._new += units
        if self._done >= self._total or self._clock() - self._shown >= SECONDS_BETWEEN_LINES:
            self._show()

    def message(self, text: str) -> None:
        """As in :class:`~genrep_dist.runner.progress.Progress`."""
        self._keep(text)

    def _show(self) -> None:
        self._shown = self._clock()
        left = ""
        if self._new and self._done < self._total:
            seconds = (self._shown - self._stage_began) * (self._total - self._done) / self._new
            left = f" · ETA {clock_text(seconds)}"
        self._rewrite(f"{self._name}: {self._done:,} of {self._total:,} · elapsed {clock_text(self._shown - self._began)}{left}")


def display_for(progress: Progress | bool | None) -> Progress:
    """The display that a caller of ``gr.run`` asks for: their own, a line (True), none (False), or a line where somebody looks (None)."""
    if progress is not None and not isinstance(progress, bool):
        return progress
    if progress is False:
        return NoProgress()
    if in_notebook():
        return notebook_progress()
    if progress or sys.stderr.isatty():
        return terminal_progress(sys.stderr)
    return NoProgress()


def clock_text(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    module: Any = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and getattr(shell, "kernel", None) is not None


def terminal_progress(stream: TextIO) -> LineProgress:
    """A line at a terminal."""
    width = 0

    def write(text: str, end: str) -> None:
        nonlocal width
        encoding = stream.encoding or "ascii"
        text = text.encode(encoding, "replace").decode(encoding)
        stream.write(f"\r{text.ljust(width)}{end}")
        stream.flush()
        width = 0 if end else len(text)

    return LineProgress(lambda text: write(text, ""), lambda text: write(text, "\n"))


def notebook_progress() -> LineProgress:
    """A line in the output of a notebook's cell."""
    module: Any = sys.modules["IPython"]
    handle = module.display.display({"text/plain": ""}, raw=True, display_id=True)

    def keep(text: str) -> None:
        module.display.display({"text/plain": text}, raw=True)

    return LineProgress(lambda text: handle.update({"text/plain": text}, raw=True), keep)
