"""Handling of SIGINT (Ctrl-C) and SIGTERM (`ray job stop`, batch systems, containers)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """A context manager in which the first stop signal raises KeyboardInterrupt in the main thread; the second ends the process.

    No committed result is lost either way, because every write is atomic. ``received`` is the number of the first signal. The text of
    ``message`` is written to stderr at once, because SIGKILL may follow within seconds (`ray job stop` waits for three). Outside the
    main thread, which alone can handle signals, nothing happens.
    """

    def __init__(self, message: Callable[[], str] = lambda: "") -> None:
        self._message = message
        self.received: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @property
    def exit_code(self) -> int:
        """The shell's exit code for this signal: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def name(self) -> str:
        return signal.Signals(self.received or signal.SIGINT).name

    def check(self) -> None:
        """Raise KeyboardInterrupt again, in case a library has swallowed it."""
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # Background jobs of a shell and nohup ignore these signals; that stays.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        # os.write, because a buffer may be half written when the signal arrives.
        if self.received is not None:
            os.write(2, b"stopped immediately; committed results are kept\n")
            os._exit(128 + number)
        self.received = number
        os.write(2, f"{self.name}: stopping; a second signal stops immediately\n{self._message()}".encode())
        raise KeyboardInterrupt
