"""Scores in Parquet: a matrix (an id column and one column per id of the other side), or one row per pair of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.config.sections import ExternalSection
from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.external.contents import Array, Contents, Ids, integer_ids
from genrep_dist.limits import check_parquet

SEED = "seed"
MODEL = "genrep.model"


def names_seeds(path: Path, section: ExternalSection) -> bool:
    """Whether the table has one row per pair and a column with the seed of each row."""
    return {*_id_columns(section), SEED} <= set(pq.read_schema(path).names)


def read_parquet(path: Path, section: ExternalSection, seed: int) -> tuple[Contents, str | None]:
    """The scores of ``seed``, and the model in the schema's metadata, as text.

    With a column of train ids and one of test ids (default ``train_id`` and ``test_id``) it is a table of pairs: its scores are in the
    column ``score``, or the declared key, and a column ``seed`` selects the seed. With one of the two it is a matrix whose other
    columns are named by the ids of the other side.

    ConfigError if both id columns are missing, MethodError for missing or repeated pairs and for column names that are not ids.
    """
    metadata = pq.read_metadata(path)
    check_parquet(metadata)
    schema = metadata.schema.to_arrow_schema()
    train, test = _id_columns(section)
    if train in schema.names and test in schema.names:
        contents = _read_pairs(path, schema, section, seed)
    elif train in schema.names or test in schema.names:
        contents = _read_matrix(path, section, transposed=test in schema.names)
    else:
        raise ConfigError(
            "this table has no id column",
            where=str(path),
            expected=f"a column {train!r} or {test!r}, or both",
            got=", ".join(schema.names[:8]),
            remedy="set train_ids and test_ids to the names of the columns",
        )
    model = (schema.metadata or {}).get(MODEL.encode())
    return contents, None if model is None else model.decode(errors="replace")


def _id_columns(section: ExternalSection) -> tuple[str, str]:
    return section.train_ids or "train_id", section.test_ids or "test_id"


def _read_matrix(path: Path, section: ExternalSection, *, transposed: bool) -> Contents:
    train, test = _id_columns(section)
    id_column = test if transposed else train
    if section.transposed is not None and section.transposed != transposed:
        raise MethodError(
            "the file's direction differs from the declared one",
            where=str(path),
            expected=f"a column {test if section.transposed else train!r} (transposed: {str(section.transposed).lower()})",
            got=f"a column {id_column!r}",
            remedy=f"set transposed: {str(transposed).lower()}, or remove it: the id column tells the direction",
        )
    table = pq.read_table(path)
    rows = _ids(table, id_column, path)
    names = [name for name in table.column_names if name != id_column]
    bad = next((name for name in names if not (name.isascii() and name.isdigit())), None)
    if bad is not None:
        raise MethodError(
            "the name of a column is not a sample id",
            where=str(path),
            expected=f"besides {id_column!r}, columns named by ids such as '17'",
            got=repr(bad),
            remedy="rename this column to the sample's id, or remove it",
        )
    columns = [table.column(name).to_numpy() for name in names]
    scores = np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))
    others = np.array([int(name) for name in names], dtype=np.int64)
    return Contents(scores, transposed, *((others, rows) if transposed else (rows, others)))


def _read_pairs(path: Path, schema: pa.Schema, section: ExternalSection, seed: int) -> Contents:
    train, test = _id_columns(section)
    value = section.key or "score"
    if value not in schema.names:
        raise ConfigError(
            "this table has no column of scores",
            where=str(path),
            expected=repr(value),
            got=", ".join(schema.names[:8]),
            remedy="set key to the name of the column",
        )
    table = pq.read_table(path, columns=[train, test, value], filters=[(SEED, "=", seed)] if SEED in schema.names else None)
    if table.num_rows == 0:
        raise MethodError(
            f"there are no scores for seed {seed}",
            where=str(path),
            expected=f"rows with {SEED} = {seed}",
            got="none",
            remedy="compute its scores, or check the file",
        )
    return _pivot(path, _ids(table, train, path), _ids(table, test, path), table.column(value).to_numpy())


def _pivot(path: Path, train: Ids, test: Ids, values: Array) -> Contents:
    rows, row = np.unique(train, return_inverse=True)
    columns, column = np.unique(test, return_inverse=True)
    # Not a matrix of counts: that of a table without most pairs would be far larger than the table.
    num_pairs = len(rows) * len(columns)
    pairs, counts = np.unique(row.astype(np.int64) * len(columns) + column, return_counts=True)
    if len(pairs) != num_pairs or (counts != 1).any():
        gaps = np.flatnonzero(pairs != np.arange(len(pairs)))
        missing = int(gaps[0]) if len(gaps) else len(pairs) if len(pairs) < num_pairs else num_pairs
        repeated = np.flatnonzero(counts != 1)
        first = min(missing, int(pairs[repeated[0]])) if len(repeated) else missing
        found = int(counts[np.searchsorted(pairs, first)]) if first in pairs else 0
        raise MethodError(
            "a pair of samples has no score" if found == 0 else "a pair of samples has several scores",
            where=f"{path}, train id {rows[first // len(columns)]}, test id {columns[first % len(columns)]}",
            expected="one row per pair of a train id and a test id",
            got=f"{found} rows; the same for {num_pairs - int((counts == 1).sum()):,} of {num_pairs:,} pairs",
            remedy="write each pair once, for all training samples and all test points of the seed",
        )
    scores = np.empty((len(rows), len(columns)), dtype=values.dtype)
    scores[row, column] = values
    return Contents(scores, transposed=False, train_ids=rows, test_ids=columns)


def _ids(table: pa.Table, name: str, path: Path) -> Ids:
    column = table.column(name)
    if column.null_count:
        raise MethodError(
            "an id is missing",
            where=f"{path}, column {name!r}",
            expected="no nulls",
            got=f"{column.null_count} nulls",
            remedy="give every row the id of its sample",
        )
    return integer_ids(column.to_numpy(), f"{path}, column {name!r}")
