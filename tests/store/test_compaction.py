from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from unittest import mock

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store import Store, compaction
from genrep_dist.store.compaction import Compaction
from genrep_dist.store.ledger import Ledger, LedgerRow
from genrep_dist.store.objects import Objects


def row(key: int, seconds: float = 0.25, noise: float = 0.0) -> LedgerRow:
    """The one training that ``key`` names; another machine may round its outputs in another way, and takes its own time."""
    outputs = np.random.default_rng(key).normal(size=(5, 1)) + noise
    return LedgerRow(f"{key:04d}", key % 3, "same", 0, tuple(range(key % 5)), outputs, seconds)


def reference(rows: Sequence[LedgerRow]) -> list[tuple[str, float, list[float]]]:
    """Of each key the row with the fewest seconds, then the smallest digest of the outputs."""
    found: dict[str, LedgerRow] = {}
    for one in rows:
        there = found.get(one.key)
        order = [(r.seconds, sha256(r.outputs.tobytes()).digest()) for r in (one, there) if r is not None]
        if there is None or order[0] < order[1]:
            found[one.key] = one
    return [(key, found[key].seconds, found[key].outputs.ravel().tolist()) for key in sorted(found)]


def contents(ledger: Ledger) -> list[tuple[str, float, list[float]]]:
    return ledger.scan().select("key", "seconds", "outputs").sort("key", "seconds").collect().rows()


def write(folder: str, tasks: Sequence[Sequence[LedgerRow]]) -> Ledger:
    ledger = Store(folder).ledger("training")
    for rows in tasks:
        ledger.write(rows)
    return ledger


def files(ledger: Ledger, folder: str) -> dict[str, bytes]:
    return {path: (Path(folder) / path).read_bytes() for path in ledger.parts()}


def tasks_of(rows: Sequence[LedgerRow], size: int) -> list[list[LedgerRow]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path)


def test_small_parts_become_one(folder: str) -> None:
    rows = [row(key) for key in range(40)]
    ledger = write(folder, tasks_of(rows, 3))
    done = ledger.compact()
    (path,) = ledger.parts()
    assert done == Compaction(14, 1, 40, (Path(folder) / path).stat().st_size)
    assert contents(ledger) == reference(rows)
    assert ledger.move_damaged_parts() == []
    keys = pq.read_table(Path(folder) / path).column("key").to_pylist()
    assert keys == sorted(keys)


def test_an_empty_ledger(folder: str) -> None:
    assert Store(folder).ledger("training").compact() == Compaction(0, 0, 0, 0)


def test_compacting_again_changes_nothing(folder: str) -> None:
    with mock.patch.object(compaction, "PART_ROWS", 10):
        ledger = write(folder, tasks_of([row(key) for key in range(47)], 3))
        first = ledger.compact()
        before = files(ledger, folder)
        assert 5 <= first.parts_after == len(before) <= 8
        assert ledger.compact() == Compaction(len(before), len(before), 47, first.bytes)
        assert files(ledger, folder) == before


def test_merged_parts_are_bounded_in_rows_and_bytes(folder: str) -> None:
    tasks = tasks_of([row(key) for key in range(60)], 2)
    with mock.patch.object(compaction, "PART_ROWS", 9):
        ledger = write(folder, tasks)
        ledger.compact()
        sizes = [pq.ParquetFile(Path(folder) / path).metadata.num_rows for path in ledger.parts()]
        assert sum(sizes) == 60
        assert max(sizes) <= 9
        assert min(sizes[:-1]) >= 4 or len(sizes) == 8
    with mock.patch.object(compaction, "PART_BYTES", 3000):
        ledger = write(f"{folder}/bytes", tasks)
        ledger.compact()
        assert 1 < len(ledger.parts()) < 30


def test_only_new_small_parts_are_merged_later(folder: str) -> None:
    with mock.patch.object(compaction, "PART_ROWS", 10):
        ledger = write(folder, tasks_of([row(key) for key in range(30)], 5))
        ledger.compact()
        before = files(ledger, folder)
        for key in range(100, 104):
            ledger.write([row(key)])
        done = ledger.compact()
    assert (done.parts_before, done.parts_after, done.rows) == (len(before) + 4, len(before) + 1, 34)
    assert before.keys() < set(ledger.parts())


LISTS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0.5, 1.0]), st.sampled_from([0.0, 1e-9, -1e-9])), min_size=1, max_size=24)


@settings(max_examples=40)
@given(LISTS, st.integers(1, 5), st.integers(2, 60), st.randoms(use_true_random=False))
def test_the_kept_rows_do_not_depend_on_how_they_were_written(
    asked: list[tuple[int, float, float]], per_task: int, bound: int, chance: random.Random
) -> None:
    rows = [row(*one) for one in asked]
    shuffled = chance.sample(rows, len(rows))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second, mock.patch.object(compaction, "PART_ROWS", bound):
        ledgers = write(first, tasks_of(rows, per_task)), write(second, tasks_of(shuffled, 1 + per_task))
        for ledger in ledgers:
            parts, keys = len(ledger.parts()), ledger.keys()
            done = ledger.compact()
            assert (done.parts_before, done.rows) == (parts, len(keys))
            assert done.parts_after == len(ledger.parts()) <= parts
            assert contents(ledger) == reference(rows)
            assert ledger.move_damaged_parts() == []
        if bound > 2 * len(rows):
            # One merged part: the same bytes, whatever the tasks were.
            hold = [files(ledger, folder) for ledger, folder in zip(ledgers, (first, second), strict=True)]
            assert hold[0] == hold[1]


def test_equal_parts_give_equal_bytes(tmp_path: Path) -> None:
    rows = [row(key % 30, seconds=key) for key in range(50)]
    found = []
    with mock.patch.object(compaction, "PART_ROWS", 8):
        for name in ("a", "b"):
            ledger = write(str(tmp_path / name), tasks_of(rows, 3)[:: 1 if name == "a" else -1])
            ledger.compact()
            found.append(files(ledger, str(tmp_path / name)))
    assert found[0] == found[1]


class Killed(BaseException):
    pass


@contextmanager
def killed_after(steps: int) -> Iterator[list[int]]:
    """Die at the ``steps``-th write or deletion of a file; the list counts them."""
    count = [0]
    put, delete = Objects.put, Objects.delete

    def step(done: object) -> None:
        if count[0] == steps:
            raise Killed
        count[0] += 1

    def dying_put(self: Objects, path: str, data: bytes) -> None:
        step(path)
        put(self, path, data)

    def dying_delete(self: Objects, path: str) -> None:
        step(path)
        delete(self, path)

    with mock.patch.object(Objects, "put", dying_put), mock.patch.object(Objects, "delete", dying_delete):
        yield count


def test_killed_at_any_moment_it_loses_no_row_and_can_be_done_again(tmp_path: Path) -> None:
    rows = [row(key % 20, seconds=key) for key in range(30)]
    tasks = tasks_of(rows, 3)
    with mock.patch.object(compaction, "PART_ROWS", 8):
        whole = write(str(tmp_path / "whole"), tasks)
        with killed_after(10**6) as count:
            expected = whole.compact()
        steps = count[0]
        assert steps > 10
        for step in range(steps):
            ledger = write(str(tmp_path / str(step)), tasks)
            with killed_after(step), pytest.raises(Killed):
                ledger.compact()
            assert ledger.keys() == {one.key for one in rows}
            best = ledger.scan().sort("seconds").unique("key", keep="first").select("key", "seconds", "outputs").sort("key")
            assert best.collect().rows() == reference(rows), step
            done = ledger.compact()
            assert contents(ledger) == reference(rows)
            assert (done.rows, done.parts_after <= expected.parts_after + 2) == (20, True)


def test_after_a_kill_the_merged_parts_stay_and_the_old_ones_go(folder: str) -> None:
    with mock.patch.object(compaction, "PART_ROWS", 10):
        ledger = write(folder, tasks_of([row(key) for key in range(30)], 2))
        old = files(ledger, folder)
        ledger.compact()
        merged = files(ledger, folder)
        for path, data in old.items():
            (Path(folder) / path).write_bytes(data)
        with mock.patch.object(Objects, "put", side_effect=AssertionError("nothing is left to be written")):
            ledger.compact()
    assert files(ledger, folder) == merged


def test_a_damaged_part_is_named_before_anything_is_touched(folder: str) -> None:
    ledger = write(folder, tasks_of([row(key) for key in range(12)], 3))
    path = ledger.parts()[2]
    data = bytearray((Path(folder) / path).read_bytes())
    data[len(data) // 2] ^= 1
    (Path(folder) / path).write_bytes(data)
    before = files(ledger, folder)
    with pytest.raises(CorruptError, match=path):
        ledger.compact()
    assert files(ledger, folder) == before
    assert [moved.path for moved in ledger.move_damaged_parts()] == [path]
    assert ledger.compact().rows == 9


@pytest.mark.parametrize(
    "other", [row(1, noise=0.1), LedgerRow("0001", 1, "same", 0, (0,), np.zeros((4, 1)), 0.25)], ids=["value", "length"]
)
def test_rows_that_disagree_are_named_before_anything_is_touched(folder: str, other: LedgerRow) -> None:
    ledger = write(folder, [[row(0)], [row(1), row(2)], [other]])
    before = files(ledger, folder)
    with pytest.raises(CorruptError, match="disagree") as error:
        ledger.compact()
    assert all(path in error.value.where for path in before if "0001" in str(pq.read_table(Path(folder) / path)["key"]))
    assert "0001" in error.value.got
    assert files(ledger, folder) == before


def test_somebody_else_who_removes_a_part_meanwhile_is_noticed(folder: str) -> None:
    ledger = write(folder, tasks_of([row(key) for key in range(12)], 3))
    listed = [*ledger.parts(), f"{ledger.folder}/part-gone.parquet"]
    with mock.patch.object(ledger, "parts", return_value=listed), pytest.raises(StoreError, match=r"part-gone[\s\S]*compact it again"):
        ledger.compact()
    assert len(ledger.keys()) == 12


def test_beside_a_writer_and_readers(folder: str) -> None:
    """A writer enters rows and a reader looks for all rows that were in before, while parts are merged again and again."""
    ledger = write(folder, [[row(0)]])
    written = [0]
    missed: set[str] = set()
    over = threading.Event()

    def writer() -> None:
        own = Store(folder).ledger("training")
        # Pauses: else it writes parts faster than they can be merged.
        while not over.wait(0.01):
            own.write([row(len(written))])
            written.append(len(written))

    def reader() -> None:
        own = Store(folder).ledger("training")
        while not over.is_set():
            there = {f"{key:04d}" for key in list(written)}
            found = own.keys(), set(own.scan().select("key").collect()["key"])
            missed.update(there - found[0], there - found[1])

    threads = [threading.Thread(target=writer), threading.Thread(target=reader)]
    with mock.patch.object(compaction, "PART_ROWS", 20):
        for thread in threads:
            thread.start()
        try:
            rounds = 0
            while (rounds < 12 or len(written) < 50) and all(thread.is_alive() for thread in threads):
                ledger.compact()
                rounds += 1
        finally:
            over.set()
            for thread in threads:
                thread.join()
        ledger.compact()
    assert not missed
    assert len(written) >= 50
    assert contents(ledger) == reference([row(key) for key in written])
    assert pl.read_parquet(f"{folder}/ledger/training/*.parquet").height == len(written)
