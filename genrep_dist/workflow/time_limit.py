"""A limit on how long work may take, in the process that does it."""

from __future__ import annotations

import faulthandler
import inspect
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from genrep_dist.errors import TimeLimitError

REPEAT_SECONDS = 1.0
"""Code that catches every exception is interrupted again after this time."""
IMPORT_SECONDS = 60.0
"""An import may take this much longer: one that is interrupted leaves modules that no later work of the process can use."""
RETURN_SECONDS = 90.0
"""A process of its own ends this much later, with work that cannot be interrupted."""
SHOWN_FRAMES = 12

_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
"""The file that the frames of an import name."""


class _TimeIsUpError(BaseException):
    """No Exception, so that `except Exception` in the code that is interrupted does not catch it."""


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise TimeLimitError, with the lines that were running, if what runs inside takes longer. ``what`` names it. None: no limit.

    Limits may be nested. The work is interrupted between two instructions of Python, and in sleeps; a call of a library that does not
    return is not (:func:`process_limit`). An import is interrupted :data:`IMPORT_SECONDS` later. Only a process's main thread can be
    interrupted, on systems with SIGALRM: elsewhere there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    is_running = True
    lines = ""
    began = time.monotonic()
    depth = len(_frames(inspect.currentframe())) - 2  # without this generator and contextlib's function

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number
        nonlocal lines
        # A limit that is postponed comes again after REPEAT_SECONDS.
        inside = _frames(frame)[:-depth]
        is_importing = any(found.f_code.co_filename == _IMPORT_SYSTEM for found in inside)
        if not is_running or (is_importing and time.monotonic() < began + seconds + IMPORT_SECONDS):
            return
        if frame is not None and not lines:
            shown = traceback.extract_stack(frame, limit=min(len(inside) + 1, SHOWN_FRAMES))
            lines = "".join(traceback.format_list(shown)).rstrip()
        raise _TimeIsUpError

    before = signal.signal(signal.SIGALRM, interrupt)
    outer, repeat = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_SECONDS)
    try:
        yield
    except _TimeIsUpError:
        is_running = False
        raise TimeLimitError(
            "work took longer than its limit",
            where=what,
            expected=f"at most {seconds:g} seconds (resources.unit_timeout)",
            got=f"still running:\n{lines}" if lines else "still running",
            remedy="look for a loop that does not end, or raise resources.unit_timeout; the other units of work are done and kept",
        ) from None
    finally:
        is_running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3), repeat)


@contextmanager
def process_limit(seconds: float | None) -> Iterator[None]:
    """End this process, with its traceback on stderr, if what runs inside takes :data:`RETURN_SECONDS` longer. None: no limit.

    For processes that an executor starts again: it ends calls of libraries that do not return.
    """
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds + RETURN_SECONDS, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _frames(frame: FrameType | None) -> list[FrameType]:
    """``frame`` and those that called it."""
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.f_back
    return found
