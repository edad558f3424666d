"""The ground truth of a run as one folder of Parquet and JSON: which models were trained on what, and what they predict.

Anyone computes LDS and its ceiling from it with pyarrow and numpy; :func:`open_truth` verifies every byte. docs/external-scores.md has
the files, their columns and an example.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import ConfigError, CorruptError
from genrep_dist.filesystem import what_is_at
from genrep_dist.limits import check_parquet, read_json
from genrep_dist.store.ledger_parts import CHANGES_SCHEMA, ENCODINGS, ROW_GROUP_BYTES

FORMAT = "genrep-truth/1"
"""Version of the files, written to truth.json."""
RECORD = "truth.json"
TABLES = ("train", "test", "points", "models", "requests")
"""The tables of a package. No other file of the folder is ever read."""


def _list(dtype: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", dtype, nullable=False))


def _schema(columns: Mapping[str, pa.DataType], nullable: tuple[str, ...] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, dtype, nullable=name in nullable) for name, dtype in columns.items()])


POINTS = _schema(
    {
        "seed": pa.int64(),
        "test_id": pa.int64(),
        "members": _list(pa.int64()),
        "output": pa.int64(),
        "number": pa.float64(),
    },
    nullable=("output",),
)
"""One row an explained number, in the order of the list ``numbers`` of a seed's models. ``number``: that of the original model."""
MODELS = pa.schema([*CHANGES_SCHEMA, pa.field("numbers", _list(pa.float64()), nullable=False)])
"""One row a trained model: the ledger's row with all that was changed, and its explained numbers."""
REQUESTS = _schema(
    {
        "metric": pa.string(),
        "seed": pa.int64(),
        "method": pa.string(),
        "test_id": pa.int64(),
        "sign": pa.string(),
        "fraction": pa.float64(),
        "subset": pa.int64(),
        "replicate": pa.int64(),
        "model": pa.int64(),
        "original": pa.int64(),
    },
    nullable=("method", "test_id", "sign", "fraction", "subset"),
)
"""One row a use of a model by a metric. ``model`` and ``original`` are rows of the table of models."""
_SCHEMAS = {"points": POINTS, "models": MODELS, "requests": REQUESTS}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


_FIELDS: dict[str, Callable[[Any], bool]] = {
    # It names a folder of a store.
    "training": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    "numbers_version": _is_count,
    "num_train": _is_count,
    "num_test": _is_count,
    "num_outputs": _is_count,
    "files": lambda value: isinstance(value, dict),
}
"""The fields of truth.json that are used here, and what they must be."""


@dataclass(frozen=True)
class Truth:
    """A verified package. ``record`` is what truth.json says of it."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def training(self) -> str:
        """The training identity of all models: the content address of data, model, loss and recipe."""
        return str(self.record["training"])

    def table(self, name: str) -> pa.Table:
        """One of the tables :data:`TABLES`. Raises as :meth:`batches`."""
        return pa.concat_tables(self.batches(name))

    def batches(self, name: str) -> Iterator[pa.Table]:
        """The row groups of a table, one at a time. CorruptError for a file that is not that table."""
        path = self.folder / f"{name}.parquet"
        try:
            with pq.ParquetFile(path) as file:
                check_parquet(file.metadata)
                schema = file.schema_arrow.remove_metadata()
                expected = _SCHEMAS.get(name, schema)
                if not schema.equals(expected):
                    raise _refused(path, f"the columns {', '.join(map(str, expected))}", ", ".join(map(str, schema)))
                if file.metadata.num_row_groups == 0:
                    yield file.read(use_threads=False)
                for group in range(file.metadata.num_row_groups):
                    yield file.read_row_group(group, use_threads=False)
        # What pyarrow raises for a file that is none of its own, and LimitError.
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _refused(path, "a Parquet table", f"{type(error).__name__}: {error}".splitlines()[0][:500]) from error


def open_truth(folder: str | Path) -> Truth:
    """The package in ``folder``, of which every byte is verified. Only its known files are read, and none of them is code.

    ConfigError if there is no package or one of another format, CorruptError, which names the file, for one altered, cut or lost byte.
    """
    folder = Path(folder)
    path = folder / RECORD
    if not path.is_file():
        raise ConfigError(
            "there is no package of ground truth",
            where=str(folder),
            expected=f"a folder with {RECORD}",
            got=what_is_at(path if folder.is_dir() else folder),
            remedy="genrep export truth NAME --to FOLDER",
        )
    try:
        record = read_json(path)
        known = dict(record) if isinstance(record, dict) else {}
        written, version = path.read_bytes(), known.get("format")
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path, "JSON", f"{type(error).__name__}: {error}".splitlines()[0][:500]) from error
    digest = known.pop("digest", None)
    if written != _encoded({**known, "digest": _digest(known)}) or digest != _digest(known):
        raise _refused(path, "the bytes that were written", "other bytes")
    if version != FORMAT:
        raise ConfigError("the package is of another format", where=str(path), expected=FORMAT, got=str(version), remedy="export it again")
    for field, is_right in _FIELDS.items():
        if not is_right(known.get(field)):
            raise _refused(path, f"the field {field}, as it is exported", repr(known.get(field))[:200])
    for name in TABLES:
        file, described = folder / f"{name}.parquet", known["files"].get(f"{name}.parquet")
        if file.is_symlink() or not file.is_file():
            raise _refused(file, "a file", what_is_at(file))
        found = describe_file(file)
        if found != described:
            raise _refused(file, str(described)[:200], str(found))
    return Truth(folder, known)


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write truth.json, after all tables, with the digests of them and of itself; its path."""
    files = {f"{name}.parquet": describe_file(folder / f"{name}.parquet") for name in TABLES}
    whole = {"format": FORMAT, **record, "files": files}
    (folder / RECORD).write_bytes(_encoded({**whole, "digest": _digest(whole)}))
    return folder / RECORD


def write_truth_table(folder: Path, name: str, tables: Iterator[pa.Table]) -> Path:
    """Write one of :data:`TABLES` from its parts, at least one; its path. Equal tables give equal bytes."""
    path, writer = folder / f"{name}.parquet", None
    schema = _SCHEMAS.get(name)
    options: dict[str, Any] = {"column_encoding": ENCODINGS, "use_dictionary": ["seed", "policy"]} if name == "models" else {}
    try:
        for table in tables:
            if writer is None:
                writer = pq.ParquetWriter(path, schema or table.schema, compression="zstd", **options)
            writer.write_table(
                table if schema is None else table.cast(schema), max(1, ROW_GROUP_BYTES * table.num_rows // (table.nbytes or 1))
            )
    finally:
        if writer is not None:
            writer.close()
    return path


def describe_file(path: Path) -> dict[str, Any]:
    """Size and digest of a file."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _encoded(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, sort_keys=True).encode() + b"\n"


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(_encoded(record)).hexdigest()


def _refused(path: Path, expected: str, got: str) -> CorruptError:
    return CorruptError(
        "a file of the ground truth is not the one that was exported",
        where=str(path),
        expected=expected,
        got=got,
        remedy="copy the package again, or export it again; nothing was imported",
    )
