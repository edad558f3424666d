"""A limit on how long work may take, in the process that does it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from genrep_dist.errors import TimeLimitError

REPEAT_SECONDS = 1.0
"""Code that catches every exception is interrupted again after this time."""


class _TimeIsUpError(BaseException):
    """No Exception, so that `except Exception` in the code that is interrupted does not catch it."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise TimeLimitError, with the line that was running, if what runs inside takes longer. ``what`` names it. None: no limit.

    Limits may be nested. The work is interrupted between two instructions of Python, and in sleeps; a call of a library that does not
    return is not. Only a process's main thread can be interrupted, on systems with SIGALRM: elsewhere there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    is_running = True
    place = ""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number
        nonlocal place
        if is_running:
            if frame is not None and not place:
                place = f"in {frame.f_code.co_filename}, line {frame.f_lineno}"
            raise _TimeIsUpError

    before, began = signal.signal(signal.SIGALRM, interrupt), time.monotonic()
    outer, repeat = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        yield
    except _TimeIsUpError:
        is_running = False
        raise TimeLimitError(
            "work took longer than its limit",
            where=what,
            expected=f"at most {seconds:g} seconds (resources.unit_timeout)",
            got=f"still running, {place}" if place else "still running",
            remedy="look for a loop that does not end, or raise resources.unit_timeout; the other units of work are done and kept",
        ) from None
    finally:
        is_running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3), repeat)
