"""Signs of life of a run: its counts every few seconds, in the store and to whoever else watches; read by `genrep status`."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from genrep_dist.errors import GenRepError
from genrep_dist.runner.progress import Tally
from genrep_dist.store import Store

SECONDS = 5.0
SILENT_SECONDS = 60.0
"""Without a sign of life for so long a run is taken for dead. Generous: clocks of machines may differ by some seconds."""
MAX_HISTORY = 240

State = Literal["running", "finished", "stopped", "failed"]
Watcher = Callable[[Mapping[str, Any]], None]


class Heartbeat:
    """While entered, writes the tally to the store every :data:`SECONDS` from a thread of its own, and once more at the end.

    ``watchers`` are given the same counts. What cannot be written is not written: the run itself tells when the store fails.
    """

    def __init__(self, tally: Tally, store: Store, name: str, watchers: Sequence[Watcher] = (), seconds: float = SECONDS) -> None:
        self._tally, self._store, self._name, self._watchers, self._seconds = tally, store, name, watchers, seconds
        self._began = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="genrep heartbeat", daemon=True)
        self._history = History()

    def __enter__(self) -> Heartbeat:
        self._tell("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit):
            # Somebody waits, and may not wait long: at most one beat is under way.
            self._thread.join(timeout=1.0)
            self._tell("stopped")
            return
        self._thread.join()
        self._tell("finished" if kind is None else "failed", value)

    def course(self) -> list[tuple[str, float, int, int]]:
        """How the run went until now: see :meth:`History.measurements`."""
        self._tell("running")
        return self._history.measurements()

    def _beat(self) -> None:
        while not self._over.wait(self._seconds):
            self._tell("running")

    def _tell(self, state: State, error: BaseException | None = None) -> None:
        now, counts = time.time(), self._tally.snapshot()
        self._history.add(now - self._began, now, numbers(counts))
        said = "" if error is None else type(error).__name__
        if isinstance(error, GenRepError):
            said += f": {error.what}"
        where = {"host": platform.node(), "pid": os.getpid()}
        record = {**counts, **where, "began": self._began, "written": now, "state": state, "error": said}
        try:
            self._store.objects.put_json(_path(self._name), record)
            for watcher in self._watchers:
                watcher(counts)
        except GenRepError:
            return


class History:
    """Numbers over time, at most :data:`MAX_HISTORY` times; of a longer run every second one, then every fourth."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float, dict[str, float]]] = []
        self._stride, self._seen = 1, 0

    def add(self, seconds: float, when: float, values: dict[str, float]) -> None:
        if self._seen % self._stride == 0:
            self._times.append((seconds, when, values))
        self._seen += 1
        if len(self._times) > MAX_HISTORY:
            self._times, self._stride = self._times[::2], 2 * self._stride

    def measurements(self) -> list[tuple[str, float, int, int]]:
        """(name, value, whole seconds since the beginning, milliseconds of the clock), without repetitions in a row."""
        found, last = [], dict[str, float]()
        for seconds, when, values in self._times:
            for name, value in values.items():
                if last.get(name) != value:
                    found.append((name, value, int(seconds), int(when * 1000)))
                    last[name] = value
        return found


@dataclass(frozen=True)
class RunState:
    """What is known of the last run of an experiment, from the store alone. ``silent_seconds``: since its last sign of life."""

    record: Mapping[str, Any]
    silent_seconds: float

    @property
    def state(self) -> str:
        """'running', 'finished', 'stopped', 'failed'; 'dead' for one that says it runs and gives no sign of life."""
        state: str = self.record["state"]
        return "dead" if state == "running" and self.silent_seconds > SILENT_SECONDS else state


def read_state(store: Store, name: str) -> RunState | None:
    """The last run's state; None where none was ever begun."""
    if not store.objects.exists(_path(name)):
        return None
    record = store.objects.get_json(_path(name))
    return RunState(record, max(0.0, time.time() - record["written"]))


def numbers(counts: Mapping[str, Any]) -> dict[str, float]:
    """The counts of :meth:`Tally.snapshot` under flat names, for MLflow."""
    flat = {}
    for stage, count in counts["stages"].items():
        for name in ("done", "running", "left", "failed"):
            flat[f"progress.{stage}.{name}"] = float(count[name])
        flat[f"progress.{stage}.units_per_second"] = float(count["rate"])
        if count["seconds_left"] is not None:
            flat[f"progress.{stage}.seconds_left"] = float(count["seconds_left"])
    for kind, failed in counts["failures"]["by_kind"].items():
        flat[f"progress.failures.{kind}"] = float(failed)
    flat["progress.retried"] = float(counts["failures"]["retried"])
    return flat


def _path(name: str) -> str:
    return f"experiments/{name}/progress.json"
