from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.objects import Objects
from genrep_dist.store.tables import get_table, put_frame, put_table, read_batches, scan_frame

SCHEMA = pa.schema([pa.field("name", pa.string()), pa.field("number", pa.float64())], metadata={"version": "1"})


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path))


def example(rows: int = 100) -> pa.Table:
    return pa.table({"name": [f"row {i}" for i in range(rows)], "number": [i / 7 for i in range(rows)]}, schema=SCHEMA)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def page_end(path: Path, column: int) -> int:
    """Where the last page of a column ends: the byte before is one of its values."""
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    return int((chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size)


def test_a_table_comes_back_whole_or_by_columns(objects: Objects) -> None:
    put_table(objects, "a/table.parquet", example())
    assert get_table(objects, "a/table.parquet", SCHEMA).equals(example())
    assert get_table(objects, "a/table.parquet", SCHEMA, ["number"]).equals(example().select(["number"]))
    assert pa.concat_tables(read_batches(objects, "a/table.parquet", SCHEMA, ["name"])).equals(example().select(["name"]))


def test_a_table_that_is_not_there(objects: Objects) -> None:
    with pytest.raises(StoreError, match="no such table"):
        get_table(objects, "a/table.parquet")
    with pytest.raises(FileNotFoundError):
        list(read_batches(objects, "a/table.parquet", SCHEMA))


def test_a_flipped_bit_in_a_page_is_an_error_that_names_the_file(objects: Objects, tmp_path: Path) -> None:
    put_table(objects, "table.parquet", example())
    flip(tmp_path / "table.parquet", page_end(tmp_path / "table.parquet", 1) - 1)
    with pytest.raises(CorruptError, match=r"table\.parquet[\s\S]*(CRC|checksum)"):
        get_table(objects, "table.parquet")
    # The other column's pages are whole.
    assert get_table(objects, "table.parquet", SCHEMA, ["name"]).num_rows == 100


def test_another_version_is_refused(objects: Objects) -> None:
    put_table(objects, "table.parquet", example())
    with pytest.raises(CorruptError, match="another schema"):
        get_table(objects, "table.parquet", SCHEMA.with_metadata({"version": "2"}))


def test_whatever_byte_of_the_file_is_hurt_the_error_is_ours(objects: Objects, tmp_path: Path) -> None:
    """Or there is none: some bytes carry nothing (a writer's name, room for sizes that nobody reads)."""
    put_table(objects, "table.parquet", example(4))
    whole = (tmp_path / "table.parquet").read_bytes()
    noticed = 0
    for position in range(0, len(whole), 3):
        flip(tmp_path / "table.parquet", position)
        try:
            get_table(objects, "table.parquet", SCHEMA)
        except CorruptError:
            noticed += 1
        (tmp_path / "table.parquet").write_bytes(whole)
    assert noticed > len(whole) / 6


def test_a_frame_declares_what_it_is_and_where_it_may_have_nulls(objects: Objects) -> None:
    frame = pl.DataFrame({"name": ["a", "b"], "number": [1.5, None], "count": [1, 2]})
    put_frame(objects, "a/frame.parquet", frame, table="frames", version=3, nullable=["number"])
    found = get_table(objects, "a/frame.parquet")
    assert found.schema.metadata == {b"genrep.table": b"frames", b"genrep.version": b"3"}
    assert [(field.name, field.type, field.nullable) for field in found.schema] == [
        ("name", pa.string(), False),
        ("number", pa.float64(), True),
        ("count", pa.int64(), False),
    ]
    assert scan_frame(objects, "a/frame.parquet").collect().equals(frame)
    with pytest.raises(CorruptError, match=r"not a table frames[\s\S]*b/frame\.parquet[\s\S]*nulls in number"):
        put_frame(objects, "b/frame.parquet", frame, table="frames")
    assert not objects.exists("b/frame.parquet")
