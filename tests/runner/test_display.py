from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from genrep_dist.runner.display import LineProgress, clock_text, display_for, terminal_progress
from genrep_dist.runner.progress import NoProgress


class Terminal(io.StringIO):
    encoding = "ascii"

    def isatty(self) -> bool:
        return True


def test_the_line_has_the_stage_the_time_and_what_is_left() -> None:
    now = [0.0]
    shown: list[str] = []
    kept: list[str] = []
    progress = LineProgress(shown.append, kept.append, lambda: now[0])
    progress.stage("retrain", 40, 10)
    now[0] = 20.0
    progress.advance(10, {})
    progress.advance(1, {})
    now[0] = 30.0
    progress.advance(19, {})
    progress.message("warning: few seeds")
    assert shown == [
        "retrain: 10 of 40 · elapsed 0:00",
        "retrain: 20 of 40 · elapsed 0:20 · ETA 0:40",
        "retrain: 40 of 40 · elapsed 0:30",
    ]
    assert kept == ["warning: few seeds"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75.4, "1:15"), (3675, "1:01:15")])
def test_times(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_a_terminal_gets_one_line_that_leaves_nothing_of_the_last_one() -> None:
    stream = Terminal()
    progress = terminal_progress(stream)
    progress.stage("a stage of a long name", 3, 0)
    progress.stage("x", 1, 0)
    progress.message("done")
    first, second, last = stream.getvalue().split("\r")[1:]
    assert len(second) == len(first)
    assert second.startswith("x: 0 of 1 ? elapsed 0:00")
    assert last == "done".ljust(len(second.rstrip())) + "\n"


def test_it_is_shown_where_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(display_for(None), NoProgress)
    assert isinstance(display_for(True), LineProgress)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(display_for(None), LineProgress)
    assert isinstance(display_for(False), NoProgress)
    own = NoProgress()
    assert display_for(own) is own


def test_a_notebook_gets_an_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[Any] = []
    shown: list[Any] = []

    def display(data: Any, **options: Any) -> Any:
        shown.append(data)
        return SimpleNamespace(update=lambda more, **_options: updates.append(more)) if options.get("display_id") else None

    notebook = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    progress = display_for(None)
    progress.stage("train", 2, 0)
    progress.message("a message")
    assert updates == [{"text/plain": "train: 0 of 2 · elapsed 0:00"}]
    assert shown[1:] == [{"text/plain": "a message"}]
