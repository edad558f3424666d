"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM (`ray job stop`, a batch system, a container's end)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """While entered, the first stopping signal raises KeyboardInterrupt in the main thread, and the second ends the process at once.

    Nothing is lost either way: a unit's work is in the store whole or not at all, so what is in flight is abandoned. ``received``
    is the number of the first signal. ``say`` is asked at once for a text to be written to stderr: who sent the signal may follow
    it by SIGKILL within seconds (`ray job stop` waits for three). Outside the main thread, which alone may take signals, nothing
    is changed.
    """

    def __init__(self, say: Callable[[], str] = lambda: "") -> None:
        self._say = say
        self.received: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def exit_code(self) -> int:
        """What a shell calls the end by this signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def name(self) -> str:
        return signal.Signals(self.received or signal.SIGINT).name

    def check(self) -> None:
        """Raise again what a library may have swallowed."""
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # What was told to be ignored (a shell's background job, nohup) stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        # os.write: a handler may find any buffer half written.
        if self.received is not None:
            os.write(2, b"ended at once; what is committed is kept\n")
            os._exit(128 + number)
        self.received = number
        os.write(2, f"{self.name}: stopping; once more ends at once\n{self._say()}".encode())
        raise KeyboardInterrupt
