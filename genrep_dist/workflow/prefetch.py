"""Reading ahead: while one block is worked on, a thread reads the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
Span = tuple[int, int]


class Ahead(Generic[T]):
    """``read`` (start, stop) with the next span on its way, for whoever asks for ``spans`` in about that order.

    A span that was not expected is read when it is asked for: the forecast changes the time and never the values. At most one span is
    ahead; with none in ``spans`` there is no thread. What ``read`` raises for a span is raised where that span is asked for. Use it as a
    context: leaving it waits for the thread.
    """

    def __init__(self, read: Callable[[int, int], T], spans: Iterable[Span] = ()) -> None:
        self._read = read
        self._expected = deque(spans)
        self._coming: tuple[Span, Future[T]] | None = None
        self._thread = ThreadPoolExecutor(1) if self._expected else None
        self._send()

    def __call__(self, start: int, stop: int) -> T:
        if self._coming is None or self._coming[0] != (start, stop):
            return self._read(start, stop)
        value = self._coming[1].result()
        self._send()
        return value

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._coming = None

    def _send(self) -> None:
        self._coming = None
        if self._thread is not None and self._expected:
            span = self._expected.popleft()
            self._coming = (span, self._thread.submit(self._read, *span))
