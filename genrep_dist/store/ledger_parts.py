"""One part of the ledger: a Parquet file that is called by the digest of its own bytes, so that any damage shows."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import CorruptError
from genrep_dist.store.objects import Objects
from genrep_dist.store.tables import encode_table

T = TypeVar("T")

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("replicate", pa.int64(), nullable=False),
        pa.field("num_removed", pa.int64(), nullable=False),
        pa.field("removed", pa.list_(pa.field("element", pa.int64(), nullable=False)), nullable=False),
        pa.field("outputs", pa.list_(pa.field("element", pa.float64(), nullable=False)), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
    ],
    metadata={"genrep.table": "ledger", "genrep.version": "2"},
)

ROW_GROUP_BYTES = 8 * 2**20
"""What a reader holds at once, of uncompressed numbers."""
ENCODINGS = {
    # Split into streams of first bytes, second bytes and so on, the empty half of a float64 that was a float32 compresses to nothing.
    "outputs.list.element": "BYTE_STREAM_SPLIT",
    "removed.list.element": "DELTA_BINARY_PACKED",
}


def part_name(data: bytes) -> str:
    return f"part-{hashlib.sha256(data).hexdigest()}.parquet"


def put_part(objects: Objects, folder: str, table: pa.Table) -> str:
    """Write rows (LEDGER_SCHEMA, at least one) as one part of ``folder``; its path. Equal rows in equal order are equal bytes."""
    data = encode_table(
        table,
        compression_level=1,
        column_encoding=ENCODINGS,
        use_dictionary=["seed", "policy", "replicate", "num_removed"],
        write_statistics=False,
        row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes),
    )
    path = f"{folder}/{part_name(data)}"
    objects.put(path, data)
    return path


def fault(path: str, data: bytes) -> str | None:
    """What is wrong with the bytes of the part at ``path``; None when they are the ones that were written, of this version."""
    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"truncated, or no Parquet file: {error}"
    if not schema.equals(LEDGER_SCHEMA, check_metadata=True):
        return f"foreign or of another version: {schema.names}, {schema.metadata} and not {LEDGER_SCHEMA.names}, {LEDGER_SCHEMA.metadata}"
    if path.rpartition("/")[2] != part_name(data):
        return "damaged: its bytes are not the ones that it was called by when it was written"
    return None


def get_part(objects: Objects, path: str) -> bytes:
    """The bytes of a part, proved whole. CorruptError that names it otherwise, FileNotFoundError when there is none."""
    data = objects.get(path)
    reason = fault(path, data)
    if reason is not None:
        raise CorruptError(
            "a part of the ledger is damaged",
            where=f"{objects.uri}/{path}",
            got=reason,
            remedy="run the experiment again: the part is put aside and its rows are trained anew",
        )
    return data


def visit(list_parts: Callable[[], list[str]], read: Callable[[str], Iterator[T]]) -> Iterator[T]:
    """What ``read`` yields of every part, safe beside writers and a compaction.

    A part that vanishes was merged into another one, which was there before: then parts are listed again. A listing that runs while
    parts are merged may miss both, which two listings cannot. Rows may come twice; none is missed that was there from the beginning.
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
