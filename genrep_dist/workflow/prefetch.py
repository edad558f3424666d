"""Reading ahead: while one block is in use, a thread reads the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
Span = tuple[int, int]


class Prefetcher(Generic[T]):
    """``read(start, stop)`` with the next of the expected ``spans`` read in the background.

    A span that was not expected is read when it is requested, so the expectation changes the time and never the values. At most one span
    is read ahead; without ``spans`` there is no thread. An exception of ``read`` is raised where its span is requested. Use it as a
    context manager: leaving it waits for the thread.
    """

    def __init__(self, read: Callable[[int, int], T], spans: Iterable[Span] = ()) -> None:
        self._read = read
        self._expected = deque(spans)
        self._next: tuple[Span, Future[T]] | None = None
        self._thread = ThreadPoolExecutor(1) if self._expected else None
        self._submit()

    def __call__(self, start: int, stop: int) -> T:
        if self._next is None or self._next[0] != (start, stop):
            return self._read(start, stop)
        value = self._next[1].result()
        self._submit()
        return value

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._next = None

    def _submit(self) -> None:
        self._next = None
        if self._thread is not None and self._expected:
            span = self._expected.popleft()
            self._next = (span, self._thread.submit(self._read, *span))
