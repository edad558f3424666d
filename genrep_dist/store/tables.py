"""Parquet tables with declared schemas, written whole, whose pages carry checksums that reading verifies."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.objects import Objects


def encode_table(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file (zstd, a checksum in every page); ``options`` are those of pyarrow's writer."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return buffer.getvalue()


def put_table(objects: Objects, path: str, table: pa.Table) -> None:
    """Write a table as one Parquet file, whole or not at all."""
    objects.put(path, encode_table(table))


def get_table(objects: Objects, path: str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some ``columns`` of it.

    Raises StoreError when there is none, CorruptError that names it when it is truncated, when a page that is read is damaged,
    and when it is foreign or of another version: not exactly ``schema``, metadata included.
    """
    try:
        with open_table(objects, path, schema) as file:
            return file.read(columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise StoreError(
            "no such table", where=f"{objects.uri}/{path}", remedy="run the experiment again: only what is missing is computed"
        ) from error


def read_batches(objects: Objects, path: str, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one after the other. Raises as :func:`get_table`, but FileNotFoundError when there is none."""
    with open_table(objects, path, schema) as file:
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


@contextmanager
def open_table(objects: Objects, path: str, schema: pa.Schema | None = None) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read from, its schema checked; on this machine only what is asked for is read from the disk.

    Inside, whatever Parquet's reader refuses becomes a CorruptError that names the file. FileNotFoundError when there is none.
    """
    local = objects.local_path(path)
    try:
        source = io.BytesIO(objects.get(path)) if local is None else local
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            if schema is not None:
                _check_schema(file.schema_arrow, schema, f"{objects.uri}/{path}")
            yield file
    except FileNotFoundError:
        raise
    # A flipped bit in the footer reaches pyarrow's reader as one of these.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(
            "a Parquet file is damaged",
            where=f"{objects.uri}/{path}",
            got=str(error),
            remedy="run the experiment again: the file is put aside and made anew",
            damaged=path,
        ) from error


def put_frame(objects: Objects, path: str, frame: pl.DataFrame, *, table: str, version: int = 1, nullable: Collection[str] = ()) -> None:
    """Write a polars frame as one Parquet file, whole or not at all; equal frames give equal bytes.

    The file declares what it is: ``table`` and ``version`` in its metadata (genrep.table, genrep.version), and that no columns but
    the ``nullable`` ones hold nulls. CorruptError, before anything is written, for a null elsewhere.
    """
    lacking = [column.name for column in frame if column.null_count() and column.name not in nullable]
    if lacking:
        raise CorruptError(
            f"this is no table {table}", where=f"{objects.uri}/{path}", expected="no null", got=f"nulls in {', '.join(lacking)}"
        )
    found = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [
        pa.field(field.name, pa.string() if field.type == pa.large_string() else field.type, nullable=field.name in nullable)
        for field in found.schema
    ]
    declared = pa.schema(fields, metadata={"genrep.table": table, "genrep.version": str(version)})
    put_table(objects, path, found.cast(declared))


def scan_frame(objects: Objects, path: str) -> pl.LazyFrame:
    """A lazy frame over one Parquet file; StoreError when it is not there."""
    local = objects.local_path(path)
    if local is not None and local.is_file():
        return pl.scan_parquet(local)
    try:
        return pl.read_parquet(io.BytesIO(objects.get(path))).lazy()
    except FileNotFoundError as error:
        raise StoreError(
            "no such table", where=f"{objects.uri}/{path}", remedy="run the experiment to its end, or check the --store"
        ) from error


def _check_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    if not found.equals(expected, check_metadata=True):
        raise CorruptError(
            "a Parquet file has another schema",
            where=where,
            expected=f"{expected.names}, {expected.metadata}",
            got=f"{found.names}, {found.metadata}",
            remedy="it was written by another version, or does not belong here: move it away",
        )
