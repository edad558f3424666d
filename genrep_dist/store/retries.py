"""Operations on a bucket, retried while the bucket is busy or the network fails.

obstore itself retries a request for a few seconds, but neither an answer that is cut off in the middle, nor for as long as a bucket may be
busy. The patience here counts once for an operation, whatever the number of its requests. Operations must be reads or idempotent writes.
An error of a local folder is never retried.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from genrep_dist.store.uris import failure_reason

T = TypeVar("T")
_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 180.0
"""An operation is not tried again after this time. Credentials and signatures may live only some five minutes."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0
QUIET_SECONDS = 10.0
"""A longer wait is logged once."""

_TRANSIENT = re.compile(
    r"status code: (?:408|425|429|500|502|503|504)\b"  # busy, or an error of the server
    r"|HTTP error: "  # the connection failed, or was lost in the middle of an answer
    r"|Error getting \w+ response body"
    r"|in partial response"  # obstore asks for the rest of an answer, and a proxy sends all of it
    r"|Got invalid \w+ response",  # an answer that ends too early, of a server that does not say its length
    re.IGNORECASE,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same operation on a bucket may succeed a little later."""
    # What follows is a dump of the error's sources.
    return isinstance(error, BaseError) and _TRANSIENT.search(str(error).partition("\n")[0]) is not None


class _Pauses:
    """The pauses of one operation: 0.2, 0.4, 0.8 ... 15 seconds, each shortened by up to a half, so that clients do not keep step."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._is_logged = False
        self._longest = FIRST_PAUSE_SECONDS

    def after(self, error: BaseException) -> float:
        """Seconds to wait before the next attempt. Raises ``error`` if there is none."""
        waited = time.monotonic() - self._began
        left = PATIENCE_SECONDS - waited
        if not is_transient(error) or left <= 0:
            raise error
        if waited > QUIET_SECONDS and not self._is_logged:
            self._is_logged = True
            _log.warning("the bucket fails, and is tried again for %.0f seconds: %s", left, failure_reason(str(error)))
        pause = min(self._longest * random.uniform(0.5, 1.0), left)  # noqa: S311 - no secret
        self._longest = min(2 * self._longest, LONGEST_PAUSE_SECONDS)
        return pause


def retried(operation: Callable[[], T]) -> T:
    """The result of ``operation``, which is called until it succeeds. Raises its last error when patience ends."""
    pauses = _Pauses()
    while True:
        try:
            return operation()
        except BaseError as error:
            pause = pauses.after(error)
        time.sleep(pause)


async def retried_async(operation: Callable[[], Awaitable[T]]) -> T:
    """As :func:`retried`, in an event loop."""
    import asyncio

    pauses = _Pauses()
    while True:
        try:
            return await operation()
        except BaseError as error:
            pause = pauses.after(error)
        await asyncio.sleep(pause)


def list_files(backend: ObjectStore, prefix: str) -> dict[str, int]:
    """The size in bytes of every file below the folder ``prefix``, by path, in the order of the backend.

    After an error of a bucket the listing goes on behind the last path: patience counts from the last page that came.
    """
    found: dict[str, int] = {}
    last: str | None = None
    pauses = _Pauses()
    while True:
        try:
            for batch in obstore.list(backend, prefix, offset=last):
                for item in batch:
                    last = str(item["path"])
                    found[last] = int(item["size"])
                pauses = _Pauses()
            return found
        except BaseError as error:
            pause = pauses.after(error)
        time.sleep(pause)
