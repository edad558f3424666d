"""Parquet tables with declared schemas. They are written atomically, and checksums are verified when they are read."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError, DamagedFile, StoreError
from genrep_dist.limits import check_parquet
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects
from genrep_dist.store.sealed import parquet_fault, seal_parquet, unset_checksum


def encode_table(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file, with zstd and page checksums. ``options``: of pyarrow's ``write_table``."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return buffer.getvalue()


def put_table(objects: Objects, path: str, table: pa.Table, *, sealed: bool = False, row_group_size: int | None = None) -> None:
    """Write a table as one Parquet file, with zstd and page checksums. Memory: one row group.

    ``sealed``: with a checksum of the whole file in its metadata, for a file whose checksum is recorded nowhere else.
    """
    with objects.writing(path) as file:
        with pq.ParquetWriter(file, table.schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(table, row_group_size)
            if sealed:
                writer.add_key_value_metadata(unset_checksum())
        if sealed:
            seal_parquet(file)


def get_table(objects: Objects, path: str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its ``columns``. Raises StoreError if there is no file, else as :func:`open_table`."""
    try:
        with open_table(objects, path, schema) as file:
            return file.read(columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise _no_table(objects, path, "run the experiment again: only what is missing is computed") from error


def read_batches(objects: Objects, path: str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one at a time. Raises as :func:`open_table`."""
    with open_table(objects, path, schema) as file:
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


@contextmanager
def open_table(
    objects: Objects, path: str, schema: pa.Schema | None = None, *, sha256: str | None = None, check_bytes: bool = True
) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, whose bytes and schema are checked. From a local file only the requested columns are kept in memory.

    ``sha256``: of the whole file, where it is recorded elsewhere; else the file's own checksum is verified, if it has one. Without
    ``check_bytes`` only the checksums of the pages that are read are verified.

    Raises FileNotFoundError if there is no file, StoreError if it is of a newer version. In the context, damage becomes a CorruptError
    that names the file: other bytes than were written, errors of the Parquet reader, another schema than ``schema``.
    """
    local = objects.local_path(path)
    try:
        source = objects.get(path) if local is None else local
        fault = parquet_fault(source, sha256) if check_bytes else None
        if fault is not None:
            raise ValueError(fault)
        with pq.ParquetFile(io.BytesIO(source) if isinstance(source, bytes) else source, page_checksum_verification=True) as file:
            check_parquet(file.metadata)
            if schema is not None:
                _check_schema(file.schema_arrow, schema, f"{objects.uri}/{path}")
            yield file
    except FileNotFoundError:
        raise
    # The exceptions that pyarrow raises for a damaged footer.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged_table(objects, path, str(error)) from error


def damaged_table(objects: Objects, path: str, got: str) -> CorruptError:
    error = CorruptError(
        "a Parquet file is damaged",
        where=f"{objects.uri}/{path}",
        got=got,
        remedy="run the experiment again: the file is moved away and recreated",
        damaged=DamagedFile(path),
    )
    return noted(objects, error)


def put_frame(
    objects: Objects,
    path: str,
    frame: pl.DataFrame,
    *,
    table: str,
    version: int = 1,
    nullable: Collection[str] = (),
    sealed: bool = False,
) -> None:
    """Write a polars frame as one Parquet file. Equal frames give equal bytes. ``sealed``: as :func:`put_table`.

    The file's metadata holds the name ``table`` and its ``version`` (genrep.table, genrep.version). Only the ``nullable`` columns may
    contain nulls; CorruptError for a null in another column.
    """
    with_nulls = [column.name for column in frame if column.null_count() and column.name not in nullable]
    if with_nulls:
        raise CorruptError(
            f"this is not a table {table}", where=f"{objects.uri}/{path}", expected="no null", got=f"nulls in {', '.join(with_nulls)}"
        )
    found = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [
        pa.field(field.name, pa.string() if field.type == pa.large_string() else field.type, nullable=field.name in nullable)
        for field in found.schema
    ]
    schema = pa.schema(fields, metadata={"genrep.table": table, "genrep.version": str(version)})
    put_table(objects, path, found.cast(schema), sealed=sealed)


def scan_frame(objects: Objects, path: str, *, sha256: str | None = None, columns: Sequence[str] | None = None) -> pl.LazyFrame:
    """A lazy frame of one Parquet file, or of some of its ``columns``. Its bytes are verified now. Errors: as :func:`open_table`.

    StoreError if there is no file. A local file whose ``sha256`` is known is not kept in memory.
    """
    local = objects.local_path(path)
    try:
        with open_table(objects, path, sha256=sha256) as file:
            if local is not None and sha256 is not None:
                scanned = pl.scan_parquet(local, glob=False)  # a store's folder may be named with * or [
                return scanned if columns is None else scanned.select(columns)
            frame = pl.from_arrow(file.read(columns=columns, use_threads=False))
    except FileNotFoundError as error:
        raise _no_table(objects, path, "run the experiment to its end, or check the --store") from error
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


def _no_table(objects: Objects, path: str, remedy: str) -> StoreError:
    return StoreError("no such table", where=f"{objects.uri}/{path}", remedy=remedy)


def _check_schema(found: pa.Schema, expected: pa.Schema, where: str) -> None:
    if not found.equals(expected, check_metadata=True):
        raise CorruptError(
            "a Parquet file has another schema",
            where=where,
            expected=f"{expected.names}, {expected.metadata}",
            got=f"{found.names}, {found.metadata}",
            remedy="it was written by another version or another program: move it away",
        )
