from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrep_dist.errors import CorruptError
from genrep_dist.store import Store
from genrep_dist.store.ledger import Ledger, LedgerRow
from genrep_dist.store.ledger_parts import LEDGER_SCHEMA, find_damage
from genrep_dist.store.tables import get_table, put_table


def row(key: str, removed: tuple[int, ...] = (1, 2), value: float = 0.5, seconds: float = 0.25) -> LedgerRow:
    return LedgerRow(key, 0, "same", 0, removed, np.full((4, 1), value), seconds)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Store(str(tmp_path)).ledger("training")


def test_rows_come_back(ledger: Ledger) -> None:
    ledger.write([row("b"), row("a", (), 1.0)])
    ledger.write([row("c")])
    assert ledger.keys() == {"a", "b", "c"}
    found = ledger.scan().sort("key").collect()
    assert found.columns == LEDGER_SCHEMA.names
    assert found["outputs"].to_list()[0] == [1.0] * 4
    assert found["removed"].to_list()[0] == []
    assert found["num_removed"].to_list() == [0, 2, 2]


def test_outputs_are_exact_in_float64(ledger: Ledger) -> None:
    ledger.write([row("a", value=1 / 3), LedgerRow("b", 0, "same", 0, (), np.full((4, 1), 1 / 3, dtype=np.float32), 0.0)])
    found = ledger.scan().sort("key").collect()
    assert found.schema["outputs"] == pl.List(pl.Float64)
    assert found["outputs"].to_list() == [[1 / 3] * 4, [float(np.float32(1 / 3))] * 4]


def test_queries_are_lazy_and_read_the_asked_columns_only(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row(str(i), tuple(range(i)), i) for i in range(5)])
    hurt_last_value_of(tmp_path / path, "outputs.list.element")
    scan = ledger.scan()
    assert scan.filter(pl.col("num_removed") > 2).select("key").sort("key").collect()["key"].to_list() == ["3", "4"]
    assert scan.select(pl.len()).collect().item() == 5
    assert scan.select("key").head(2).collect().height == 2
    assert scan.join(scan.select("key"), on="key").select("seed").collect(engine="streaming").height == 5
    with pytest.raises(CorruptError, match=path):
        scan.filter(pl.col("num_removed") > 2).collect()


def test_the_first_rows_of_several_parts(ledger: Ledger) -> None:
    for key in "abc":
        ledger.write([row(key), row(key * 2)])
    for count in (1, 2, 3, 5, 6, 7):
        for engine in ("streaming", "in-memory"):
            found = ledger.scan().head(count).collect(engine=engine)
            assert found["key"].n_unique() == found.height == min(count, 6)


def test_an_empty_ledger_has_the_schema(ledger: Ledger) -> None:
    assert ledger.keys() == set()
    assert ledger.scan().collect().columns == LEDGER_SCHEMA.names
    assert ledger.scan().select(pl.col("seconds").median()).collect().item() is None
    assert ledger.move_damaged_parts() == []


def test_a_part_written_twice_is_one_part(ledger: Ledger) -> None:
    assert ledger.write([row("a"), row("b")]) == ledger.write([row("b"), row("a")])
    assert len(ledger.parts()) == 1
    ledger.write([row("b"), row("c")])
    assert ledger.keys() == {"a", "b", "c"}


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def flipped(whole: bytes) -> bytes:
    """With another bit in the first key."""
    hurt = bytearray(whole)
    hurt[column_end(io.BytesIO(whole), "key") - 1] ^= 1
    return bytes(hurt)


def empty(whole: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("harm", [truncated, flipped, empty])
def test_a_damaged_part_is_named_put_aside_and_only_its_rows_are_gone(
    ledger: Ledger, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    path = ledger.write([row("a"), row("b")])
    ledger.write([row("c")])
    whole = (tmp_path / path).read_bytes()
    for _ in range(2):  # The same part, damaged again after its rows were written anew.
        (tmp_path / path).write_bytes(harm(whole))
        with pytest.raises(CorruptError, match=path):
            ledger.scan().collect()
        with pytest.raises(CorruptError, match=path):
            ledger.keys()
        (moved,) = ledger.move_damaged_parts()
        assert (moved.path, moved.reason != "") == (path, True)
        assert (tmp_path / moved.moved_to).read_bytes() == harm(whole)
        assert moved.moved_to.startswith(f"{ledger.folder}/refused/")
        assert ledger.keys() == {"c"} == set(ledger.scan().collect()["key"])
        assert ledger.move_damaged_parts() == []
        assert ledger.write([row("a"), row("b")]) == path
    assert ledger.keys() == {"a", "b", "c"}


def test_what_was_put_aside_is_never_overwritten(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row("a")])
    whole = (tmp_path / path).read_bytes()
    for harm in (truncated, flipped):
        (tmp_path / path).write_bytes(harm(whole))
        ledger.move_damaged_parts()
    assert {file.read_bytes() for file in (tmp_path / ledger.folder / "refused").iterdir()} == {truncated(whole), flipped(whole)}


def test_a_foreign_part_and_one_of_another_version_are_named_and_put_aside(ledger: Ledger, tmp_path: Path) -> None:
    ledger.write([row("a")])
    objects = Store(str(tmp_path)).objects
    old = get_table(objects, ledger.parts()[0]).replace_schema_metadata({"genrep.table": "ledger", "genrep.version": "1"})
    for name, table in (("part-x", pa.table({"key": ["a"]})), ("part-y", old)):
        put_table(objects, f"{ledger.folder}/{name}.parquet", table)
        with pytest.raises(CorruptError, match=rf"{name}.parquet[\s\S]*another version"):
            ledger.keys()
        with pytest.raises(CorruptError, match=rf"{name}.parquet[\s\S]*another version"):
            ledger.scan().select("key").collect()
        assert [("another version" in moved.reason, moved.path) for moved in ledger.move_damaged_parts()] == [
            (True, f"{ledger.folder}/{name}.parquet")
        ]
    assert ledger.keys() == {"a"}


def test_any_flipped_bit_of_a_part_shows(ledger: Ledger, tmp_path: Path) -> None:
    """Page checksums leave the pages' headers and the footer out; the part's name does not."""
    path = ledger.write([row(str(i), tuple(range(i)), i / 3) for i in range(6)])
    whole = (tmp_path / path).read_bytes()
    assert find_damage(path, whole) is None
    chance = random.Random(0)
    for position in range(len(whole)):
        hurt = bytearray(whole)
        hurt[position] ^= 1 << chance.randrange(8)
        assert find_damage(path, bytes(hurt)) is not None, position


def test_a_flipped_bit_in_any_column_stops_its_reader(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row(str(i), tuple(range(i)), i / 3, i / 7) for i in range(6)])
    whole = (tmp_path / path).read_bytes()
    for name in ("key", "num_removed", "removed.list.element", "outputs.list.element", "seconds"):
        hurt_last_value_of(tmp_path / path, name)
        with pytest.raises(CorruptError, match=path):
            ledger.scan().select(name.partition(".")[0]).collect()
        if name == "key":
            with pytest.raises(CorruptError, match=path):
                ledger.keys()
        (tmp_path / path).write_bytes(whole)


def column_end(file: Path | io.BytesIO, name: str) -> int:
    """Where the last page of a column ends, in a part of one row group."""
    group = pq.ParquetFile(file).metadata.row_group(0)
    (chunk,) = [group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == name]
    return int((chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size)


def hurt_last_value_of(path: Path, column: str) -> None:
    """Flip a bit of the last byte of a column."""
    end = column_end(path, column)
    data = bytearray(path.read_bytes())
    data[end - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("seen", "often"), [(3, 2), (3, 1), (1, 1), (0, 1)])
def test_a_reader_whose_listing_is_old_finds_the_merged_part(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, seen: int, often: int
) -> None:
    """Both listings may be from before a compaction. One that runs during it may miss parts that are gone now, and the merged one too."""
    for key in "abc":
        ledger.write([row(key)])
    old = ledger.parts()[:seen]
    ledger.compact()
    for read in (ledger.keys, lambda: set(ledger.scan().collect()["key"])):
        listings = [old] * often
        monkeypatch.setattr(ledger, "parts", lambda listings=listings: listings.pop() if listings else Ledger.parts(ledger))
        assert read() == {"a", "b", "c"}
        monkeypatch.undo()


def test_a_failing_disk_puts_nothing_aside(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ledger.write([row("a")])

    def failing(*arguments: object) -> bytes:
        raise PermissionError("not now")

    monkeypatch.setattr(obstore, "get", failing)
    with pytest.raises(PermissionError):
        ledger.move_damaged_parts()
    monkeypatch.undo()
    assert ledger.parts() == [path]


def test_parquet_keeps_the_schema_and_its_version(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger.write([row("a")])
    assert get_table(Store(str(tmp_path)).objects, path, LEDGER_SCHEMA).schema.metadata[b"genrep.version"] == b"2"


def test_other_tools_read_the_parts(ledger: Ledger, tmp_path: Path) -> None:
    """Plain polars, on encodings that are not everybody's default."""
    rows = [LedgerRow(str(i), i, "fresh", 1, tuple(range(i)), np.random.default_rng(i).normal(size=(4, 1)), 0.5) for i in range(9)]
    ledger.write(rows)
    found = pl.scan_parquet(f"{tmp_path}/ledger/*/*.parquet").sort("key").collect()
    assert found.equals(ledger.scan().sort("key").collect())
    assert [np.array(one.outputs).ravel().tolist() for one in rows] == found["outputs"].to_list()
