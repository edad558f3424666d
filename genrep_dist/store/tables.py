"""Parquet tables with declared schemas. They are written atomically, and page checksums are verified when they are read."""

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
from genrep_dist.store.objects import Objects


def encode_table(table: pa.Table, **options: Any) -> bytes:
    """A table as the bytes of a Parquet file, with zstd and page checksums. ``options``: of pyarrow's ``write_table``."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, **options)
    return buffer.getvalue()


def put_table(objects: Objects, path: str, table: pa.Table, **options: Any) -> None:
    """Write a table as one Parquet file. ``options``: of pyarrow's ``write_table``."""
    objects.put(path, encode_table(table, **options))


def get_table(objects: Objects, path: str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its ``columns``.

    Raises StoreError if there is no file. Raises CorruptError if the file is truncated, a page that is read is damaged, or the schema
    (including metadata) is not exactly ``schema``.
    """
    try:
        with open_table(objects, path, schema) as file:
            return file.read(columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise _no_table(objects, path, "run the experiment again: only what is missing is computed") from error


def read_batches(objects: Objects, path: str, schema: pa.Schema | None = None, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a Parquet file, one at a time. Raises as :func:`get_table`, but FileNotFoundError if there is no file."""
    with open_table(objects, path, schema) as file:
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


@contextmanager
def open_table(objects: Objects, path: str, schema: pa.Schema | None = None) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, whose schema is checked. From a local file only the requested columns are read.

    In the context, errors of the Parquet reader become a CorruptError that names the file. FileNotFoundError if there is no file.
    """
    local = objects.local_path(path)
    try:
        source = io.BytesIO(objects.get(path)) if local is None else local
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            check_parquet(file.metadata)
            if schema is not None:
                _check_schema(file.schema_arrow, schema, f"{objects.uri}/{path}")
            yield file
    except FileNotFoundError:
        raise
    # The exceptions that pyarrow raises for a damaged footer.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptError(
            "a Parquet file is damaged",
            where=f"{objects.uri}/{path}",
            got=str(error),
            remedy="run the experiment again: the file is moved away and recreated",
            damaged=DamagedFile(path),
        ) from error


def put_frame(objects: Objects, path: str, frame: pl.DataFrame, *, table: str, version: int = 1, nullable: Collection[str] = ()) -> None:
    """Write a polars frame as one Parquet file. Equal frames give equal bytes.

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
    put_table(objects, path, found.cast(pa.schema(fields, metadata={"genrep.table": table, "genrep.version": str(version)})))


def scan_frame(objects: Objects, path: str) -> pl.LazyFrame:
    """A lazy frame of one Parquet file. StoreError if there is none."""
    local = objects.local_path(path)
    if local is not None and local.is_file():
        with open_table(objects, path):  # its size is checked before it is read
            pass
        return pl.scan_parquet(local, glob=False)  # a store's folder may be named with * or [
    try:
        return pl.read_parquet(io.BytesIO(objects.get(path))).lazy()
    except FileNotFoundError as error:
        raise _no_table(objects, path, "run the experiment to its end, or check the --store") from error


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
