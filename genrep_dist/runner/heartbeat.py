"""The heartbeat of a run: its counts, written to the store every few seconds. `genrep status` reads it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, FiniteFloat, ValidationError

from genrep_dist.errors import CorruptError, GenRepError, OutOfTimeError, StoreError
from genrep_dist.store import Store
from genrep_dist.store.paths import ExperimentPaths
from genrep_dist.store.processes import is_gone, is_of_this_machine, this_process

if TYPE_CHECKING:
    from genrep_dist.runner.progress import ProgressCounter

SECONDS = 5.0
TIMEOUT_SECONDS = 60.0
"""A run whose last heartbeat is older is considered dead, or is watched. See :func:`read_state`."""
WATCH_SECONDS = 2 * SECONDS + 2.0
"""A watched run without a heartbeat for this long, by the clock of the process that watches it, is considered dead."""
MAX_HISTORY = 240

State = Literal["running", "finished", "stopped", "failed"]


class Heartbeat:
    """A context manager. Writes the counts to the store every ``seconds`` from its own thread, and when it exits.

    ``callbacks`` are called with the same counts. ``sample`` returns more metrics for the history. Store errors are ignored here: the run
    itself raises them. Nothing is written when ``is_current`` returns False, because another driver has taken over.

    Times of one process come from its monotonic clock, which does not jump; the wall clock is read once, and for ``written``.
    """

    def __init__(
        self,
        progress: ProgressCounter,
        store: Store,
        name: str,
        callbacks: Sequence[Callable[[Mapping[str, Any]], None]] = (),
        seconds: float = SECONDS,
        *,
        is_current: Callable[[], bool] = lambda: True,
        sample: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._progress, self._store, self._path, self._callbacks = progress, store, ExperimentPaths(name).progress, callbacks
        self._seconds, self._is_current, self._sample = seconds, is_current, sample
        self._began, self._began_monotonic, self._beats = time.time(), time.monotonic(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="genrep heartbeat", daemon=True)
        self._history = History()

    def __enter__(self) -> Heartbeat:
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit | OutOfTimeError):
            # A user or a scheduler waits for the end of the process.
            self._thread.join(timeout=1.0)
            self._write("stopped")
            return
        self._thread.join()
        self._write("finished" if kind is None else "failed", value)

    def history(self) -> RunHistory:
        """The run until now."""
        self._write("running")
        now = self._began + time.monotonic() - self._began_monotonic
        return RunHistory(int(1000 * self._began), int(1000 * now), self._history.measurements())

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds):
            self._write("running")

    def _write(self, state: State, error: BaseException | None = None) -> None:
        elapsed, counts = time.monotonic() - self._began_monotonic, self._progress.snapshot()
        self._history.add(elapsed, self._began + elapsed, {**as_metrics(counts), **self._sample()})
        text = "" if error is None else type(error).__name__
        if isinstance(error, GenRepError):
            text += f": {error.what}"
        self._beats += 1
        times = {"began": self._began, "written": time.time(), "beat": self._beats}
        try:
            if not self._is_current():
                return
            record = {**counts, **this_process(), **times, "state": state, "error": text}
            self._store.objects.put_json(self._path, record)
            for callback in self._callbacks:
                callback(counts)
        except GenRepError:
            return


@dataclass(frozen=True)
class RunHistory:
    """When a run ``began`` and ``ended``, in Unix milliseconds (None: not known), and its ``measurements`` over time.

    These are as returned by :meth:`History.measurements`.
    """

    began: int | None
    ended: int | None
    measurements: Sequence[tuple[str, float, int, int]] = ()


class History:
    """Metrics at no more than :data:`MAX_HISTORY` times. For a long run every second time is kept, then every fourth, and so on."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float, dict[str, float]]] = []
        self._stride, self._seen = 1, 0

    def add(self, seconds: float, timestamp: float, values: dict[str, float]) -> None:
        if self._seen % self._stride == 0:
            self._times.append((seconds, timestamp, values))
        self._seen += 1
        if len(self._times) > MAX_HISTORY:
            self._times, self._stride = self._times[::2], 2 * self._stride

    def measurements(self) -> list[tuple[str, float, int, int]]:
        """(name, value, whole seconds since the start, Unix time in milliseconds), without consecutive repetitions."""
        found, last = [], dict[str, float]()
        for seconds, timestamp, values in self._times:
            for name, value in values.items():
                if last.get(name) != value:
                    found.append((name, value, int(seconds), int(timestamp * 1000)))
                    last[name] = value
        return found


@dataclass(frozen=True)
class RunState:
    """The last heartbeat of an experiment's latest run, and its age ``silent_seconds``. ``gone``: its process has ended on this machine."""

    record: Mapping[str, Any]
    silent_seconds: float
    gone: bool = False

    @property
    def state(self) -> str:
        """'running', 'finished', 'stopped' or 'failed'; 'dead' for a running one that has ended or whose heartbeat is too old."""
        state: str = self.record["state"]
        return "dead" if state == "running" and (self.gone or self.silent_seconds > TIMEOUT_SECONDS) else state


def read_state(store: Store, name: str, *, watch: bool = True) -> RunState | None:
    """State of the latest run of an experiment; None if it was never run, or if its record is damaged.

    The age of a heartbeat is the difference of two times of the store's own clock, so that clocks of machines are not compared. If this
    process may not write into the store, the wall clock counts.

    A running one whose last heartbeat seems to be too old is watched for WATCH_SECONDS where its age says little: a process of this
    machine, as the clock of a folder's file system can jump, and where the wall clock counts. ``watch=False`` does not wait for it.
    """
    record = _read_record(store, name)
    if record is None:
        return None
    age = None
    if record["state"] == "running":
        if is_gone(record):
            return RunState(record, _wall_age(record), gone=True)
        age = _store_age(store, name)
    state = RunState(record, _wall_age(record) if age is None else age)
    if not watch or state.state != "dead" or not (age is None or is_of_this_machine(record)):
        return state
    began = time.monotonic()
    while time.monotonic() - began < WATCH_SECONDS:
        time.sleep(min(0.5, WATCH_SECONDS / 4))
        now = _read_record(store, name)
        if now is not None and (now["written"], now.get("beat")) != (record["written"], record.get("beat")):
            return RunState(now, 0.0)
    return state


def _wall_age(record: Mapping[str, Any]) -> float:
    return max(0.0, time.time() - float(record["written"]))


def _store_age(store: Store, name: str) -> float | None:
    """Seconds since the last heartbeat, by the store's clock; None if it cannot be read."""
    try:
        return max(0.0, store.objects.now() - store.objects.modified(ExperimentPaths(name).progress))
    except (StoreError, FileNotFoundError):
        return None


class _StageRecord(BaseModel, strict=True):
    """What is read of a stage's counts."""

    done: int
    running: int
    left: int
    failed: int
    rate: FiniteFloat
    seconds_left: FiniteFloat | None


class _FailureRecord(BaseModel, strict=True):
    by_kind: dict[str, int]
    named: list[str]
    retried: int


class _Record(BaseModel, strict=True):
    """What is read of a heartbeat's record; it may have more."""

    state: State
    written: FiniteFloat
    pid: int
    host: str
    error: str
    stages: dict[str, _StageRecord]
    failures: _FailureRecord
    part: str = ""


def _read_record(store: Store, name: str) -> dict[str, Any] | None:
    """The record; None if there is none or it is damaged: then nothing is known, and the next heartbeat replaces it."""
    try:
        record: dict[str, Any] = store.objects.get_json(ExperimentPaths(name).progress)
        _Record.model_validate(record)
    except (FileNotFoundError, CorruptError, ValidationError):
        return None
    return record


def as_metrics(counts: Mapping[str, Any]) -> dict[str, float]:
    """The counts of :meth:`ProgressCounter.snapshot` as flat metrics for MLflow."""
    metrics = {}
    for stage, count in counts["stages"].items():
        for name in ("done", "running", "left", "failed"):
            metrics[f"system/progress.{stage}.{name}"] = float(count[name])
        metrics[f"system/progress.{stage}.units_per_second"] = float(count["rate"])
        if count["seconds_left"] is not None:
            metrics[f"system/progress.{stage}.seconds_left"] = float(count["seconds_left"])
    for kind, failed in counts["failures"]["by_kind"].items():
        metrics[f"system/progress.failures.{kind}"] = float(failed)
    metrics["system/progress.retried"] = float(counts["failures"]["retried"])
    return metrics
