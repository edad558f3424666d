from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genrep_dist.workflow.prefetch import Prefetcher

spans = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(expected=spans, asked=spans)
def test_whatever_is_expected_what_is_asked_for_is_read(expected: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    with Prefetcher(lambda start, stop: (start, stop), expected) as ahead:
        assert [ahead(*span) for span in asked] == asked


def test_the_next_span_is_read_while_one_is_worked_on_and_no_more() -> None:
    begun: dict[int, threading.Event] = {start: threading.Event() for start in range(4)}

    def read(start: int, stop: int) -> int:
        begun[start].set()
        return start

    with Prefetcher(read, [(start, start + 1) for start in range(4)]) as ahead:
        assert ahead(0, 1) == 0
        assert begun[1].wait(10)
        assert not begun[2].is_set()
        assert ahead(1, 2) == 1
        assert begun[2].wait(10)
        assert not begun[3].is_set()


def test_what_reading_raises_comes_where_it_is_asked_for() -> None:
    def read(start: int, stop: int) -> int:
        if start == 1:
            raise FileNotFoundError("block 1")
        return start

    with Prefetcher(read, [(0, 1), (1, 2), (2, 3)]) as ahead:
        assert ahead(0, 1) == 0
        with pytest.raises(FileNotFoundError, match="block 1"):
            ahead(1, 2)
