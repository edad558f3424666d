"""Parts of the ledger: Parquet files that are named by the digest of their bytes, so that any damage is detected."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError, DamagedFile, StoreError
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects
from genrep_dist.store.paths import ledger_part
from genrep_dist.store.tables import encode_table, open_table
from genrep_dist.store.versions import refuse_newer

T = TypeVar("T")


def _field(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


LEDGER_SCHEMA = pa.schema(
    [
        _field("key", pa.string()),
        _field("seed", pa.int64()),
        _field("policy", pa.string()),
        _field("replicate", pa.int64()),
        _field("num_removed", pa.int64()),
        _field("removed", pa.list_(_field("element", pa.int64()))),
        _field("outputs", pa.list_(_field("element", pa.float64()))),
        _field("seconds", pa.float64()),
    ],
    metadata={"genrep.table": "ledger", "genrep.version": "2"},
)

CHANGES_SCHEMA = pa.schema(
    [
        *LEDGER_SCHEMA,
        _field("reweighted", pa.list_(_field("element", pa.int64()))),
        _field("weights", pa.list_(_field("element", pa.float64()))),
        _field("relabelled", pa.list_(_field("element", pa.int64()))),
        _field("labels", pa.list_(_field("element", pa.list_(_field("element", pa.float64()))))),
    ],
    metadata={"genrep.table": "ledger", "genrep.version": "3"},
)
"""Of parts with a row whose change is more than a removal: ids with their weights, and ids with the numbers of their targets."""

OLDEST_VERSION = 2
"""Parts of this and later versions are read."""
ROW_GROUP_BYTES = 8 * 2**20
"""Uncompressed bytes that a reader holds at once."""
ENCODINGS = {
    # Stores all first bytes, then all second bytes and so on: the zero half of a float64 that was a float32 compresses away.
    "outputs.list.element": "BYTE_STREAM_SPLIT",
    "removed.list.element": "DELTA_BINARY_PACKED",
}


def put_part(objects: Objects, folder: str, table: pa.Table) -> str:
    """Write rows (LEDGER_SCHEMA, at least one) as one part in ``folder``; its path. Equal rows in equal order give equal bytes."""
    data = encode_table(
        table,
        compression_level=1,
        column_encoding=ENCODINGS,
        use_dictionary=["seed", "policy", "replicate", "num_removed"],
        write_statistics=False,
        row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes),
    )
    path = _part_path(folder, data)
    objects.put(path, data)
    return path


def find_damage(path: str, data: bytes) -> str | None:
    """Why ``data`` is not the part that was written at ``path``; None if it is intact.

    Raises StoreError for an intact part of a version that cannot be read here.
    """
    intact = path == _part_path(path.rpartition("/")[0], data)
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"truncated, or not a Parquet file: {error}"
    if not _is_readable(schema):
        if intact:
            _refuse_version(schema, path)
        return f"not a ledger part, or of another version: {schema.names}, {schema.metadata}"
    return None if intact else "damaged: its name is not the digest of its bytes"


def _version(schema: pa.Schema) -> int:
    """The version of a ledger part; 0 for any other table."""
    metadata = schema.metadata or {}
    text = metadata.get(b"genrep.version", b"")
    return int(text) if metadata.get(b"genrep.table") == b"ledger" and text.isdigit() else 0


VERSION = _version(CHANGES_SCHEMA)


def _is_readable(schema: pa.Schema) -> bool:
    return (schema.equals(LEDGER_SCHEMA) or schema.equals(CHANGES_SCHEMA)) and OLDEST_VERSION <= _version(schema) <= VERSION


def _refuse_version(schema: pa.Schema, where: str) -> None:
    """StoreError for the schema of a ledger part of another version than those that are read here."""
    refuse_newer("a part of the ledger", _version(schema), VERSION, where)
    if 0 < _version(schema) < OLDEST_VERSION:
        raise StoreError(
            "a part of the ledger is of a version that is not read any more",
            where=where,
            expected=f"format {OLDEST_VERSION} to {VERSION}",
            got=f"format {_version(schema)}",
            remedy="move it out of the store: its models are trained again",
        )


def read_part(objects: Objects, path: str, columns: Sequence[str] | None, *, check_bytes: bool = True) -> Iterator[pa.Table]:
    """The row groups of a part, of the ``columns``, or of those of LEDGER_SCHEMA; columns that only CHANGES_SCHEMA has may be absent.

    Every byte of the part is verified if the outputs are read, else the pages that are read.

    Raises FileNotFoundError if there is no part, CorruptError if it is damaged, StoreError if it is of a newer version.
    """
    check_bytes = check_bytes and (columns is None or "outputs" in columns)
    digest = path.rpartition("/")[2].removeprefix("part-").removesuffix(".parquet")
    with open_table(objects, path, sha256=digest, check_bytes=check_bytes) as file:
        if not _is_readable(file.schema_arrow):
            # Only an intact part is known to be of another version.
            error = CorruptError(
                "a part of the ledger is damaged",
                where=f"{objects.uri}/{path}",
                got=find_damage(path, objects.get(path)) or "",
                remedy="run the experiment again: the part is moved away and its models are trained again",
                damaged=DamagedFile(path),
            )
            raise noted(objects, error)
        for group in range(file.metadata.num_row_groups):
            yield file.read_row_group(group, columns=LEDGER_SCHEMA.names if columns is None else columns, use_threads=False)


def with_changes(table: pa.Table) -> pa.Table:
    """Rows of LEDGER_SCHEMA or CHANGES_SCHEMA as those of the latter."""
    for field in CHANGES_SCHEMA:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.array([[]] * table.num_rows, field.type))
    return table.cast(CHANGES_SCHEMA)


def get_part(objects: Objects, path: str) -> bytes:
    """The bytes of a part, verified. CorruptError if they are damaged, FileNotFoundError if there is no part."""
    data = objects.get(path)
    damage = find_damage(path, data)
    if damage is not None:
        raise CorruptError(
            "a part of the ledger is damaged",
            where=f"{objects.uri}/{path}",
            got=damage,
            remedy="run the experiment again: the part is moved away and its models are trained again",
        )
    return data


def read_parts(list_parts: Callable[[], list[str]], read: Callable[[str], Iterator[T]]) -> Iterator[T]:
    """Yields from ``read`` for every part, while writers and a compaction may run.

    When a part vanishes, it was merged into a part that already existed, so the parts are listed again. A listing made during a
    compaction may miss both the old and the merged part; two consecutive listings cannot. Rows may be repeated; none is missed that
    existed at the start.
    """
    seen: set[str] = set()
    vanished = True
    while vanished:
        vanished = False
        for path in sorted({*list_parts(), *list_parts()} - seen):
            seen.add(path)
            try:
                yield from read(path)
            except FileNotFoundError:
                vanished = True


def _part_path(folder: str, data: bytes) -> str:
    return ledger_part(folder, hashlib.sha256(data).hexdigest())
