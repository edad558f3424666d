"""Parquet tables with declared schemas, written whole."""

from __future__ import annotations

import io

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.objects import Objects


def put_table(objects: Objects, path: str, table: pa.Table) -> None:
    """Write a table as one Parquet file (zstd), whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    objects.put(path, buffer.getvalue())


def get_table(objects: Objects, path: str, schema: pa.Schema | None = None, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some ``columns`` of it; CorruptError names it when it is truncated, foreign, or of another version."""
    try:
        file = pq.ParquetFile(io.BytesIO(objects.get(path)))
        table = file.read(columns=columns)
    except FileNotFoundError as error:
        raise StoreError(
            "no such table", where=f"{objects.uri}/{path}", remedy="run the experiment again: only what is missing is computed"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptError(
            "a Parquet file is damaged", where=f"{objects.uri}/{path}", got=str(error), remedy="delete that file and run again"
        ) from error
    found = file.schema_arrow
    if schema is not None and not found.equals(schema, check_metadata=True):
        raise CorruptError(
            "a Parquet file has another schema",
            where=f"{objects.uri}/{path}",
            expected=f"{schema.names}, {schema.metadata}",
            got=f"{found.names}, {found.metadata}",
            remedy="it was written by another version, or does not belong here: move it away",
        )
    return table


def put_frame(objects: Objects, path: str, frame: pl.DataFrame) -> None:
    """Write a polars frame as one Parquet file; equal frames give equal bytes."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    objects.put(path, buffer.getvalue())


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
