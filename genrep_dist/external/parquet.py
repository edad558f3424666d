"""Scores in Parquet: a matrix (an id column and one column for each id of the other side), or one row for each pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genrep_dist.errors import ConfigError, MethodError
from genrep_dist.external.contents import Array, Contents, Declared, Ids, integer_ids

SEED = "seed"
MODEL = "genrep.model"


def names_seeds(path: Path, declared: Declared) -> bool:
    """Whether the table has one row for each pair and says of which seed each row is."""
    train, test = _id_columns(declared)
    return {train, test, SEED} <= set(_schema(path).names)


def read_parquet(path: Path, declared: Declared, seed: int) -> tuple[Contents, str | None]:
    """The scores of ``seed``, and the model that the schema's metadata name, as text.

    With a column of train ids and one of test ids (``train_id`` and ``test_id`` where nothing else is declared) it is a table of
    pairs: its scores are in ``score``, or the declared key, and ``seed``, where it is there, tells several seeds apart. With one of
    them it is a matrix, whose other columns are named by the ids of the other side; which one it has says which way round it is.

    ConfigError without either column, MethodError for pairs that are missing or there twice and for columns whose names are no ids.
    """
    schema = _schema(path)
    model = (schema.metadata or {}).get(MODEL.encode())
    train, test = _id_columns(declared)
    if train in schema.names and test in schema.names:
        contents = _read_pairs(path, schema, declared, seed)
    elif train in schema.names or test in schema.names:
        contents = _read_matrix(path, declared, transposed=test in schema.names)
    else:
        raise ConfigError(
            "this table does not say which samples its rows are of",
            where=str(path),
            expected=f"a column {train!r} or {test!r}, or both",
            got=", ".join(schema.names[:8]),
            remedy="declare the columns' names as train_ids and test_ids",
        )
    return contents, None if model is None else model.decode(errors="replace")


def _id_columns(declared: Declared) -> tuple[str, str]:
    return declared.train_ids or "train_id", declared.test_ids or "test_id"


def _schema(path: Path) -> pa.Schema:
    return pq.read_schema(path)


def _read_matrix(path: Path, declared: Declared, *, transposed: bool) -> Contents:
    train, test = _id_columns(declared)
    id_column = test if transposed else train
    if declared.transposed is not None and declared.transposed != transposed:
        raise MethodError(
            "the file's direction is not the declared one",
            where=str(path),
            expected=f"a column {test if declared.transposed else train!r} (transposed: {str(declared.transposed).lower()})",
            got=f"a column {id_column!r}",
            remedy=f"declare transposed: {str(transposed).lower()}, or leave it out: the id column says it",
        )
    table = pq.read_table(path)
    rows = _ids(table, id_column, path)
    names = [name for name in table.column_names if name != id_column]
    if not all(name.isascii() and name.isdigit() for name in names):
        bad = next(name for name in names if not (name.isascii() and name.isdigit()))
        raise MethodError(
            "a column is named by no sample id",
            where=str(path),
            expected=f"beside {id_column!r}, columns named by ids such as '17'",
            got=repr(bad),
            remedy="rename this column to the sample's id, or leave it out",
        )
    columns = [table.column(name).to_numpy() for name in names]
    scores = np.stack(columns, axis=1) if columns else np.empty((len(rows), 0))
    others = np.array([int(name) for name in names], dtype=np.int64)
    return Contents(scores, transposed, *((others, rows) if transposed else (rows, others)))


def _read_pairs(path: Path, schema: pa.Schema, declared: Declared, seed: int) -> Contents:
    train, test = _id_columns(declared)
    value = declared.key or "score"
    if value not in schema.names:
        raise ConfigError(
            "this table has no such column",
            where=str(path),
            expected=repr(value),
            got=", ".join(schema.names[:8]),
            remedy="declare it as key",
        )
    table = pq.read_table(path, columns=[train, test, value], filters=[(SEED, "=", seed)] if SEED in schema.names else None)
    if table.num_rows == 0:
        raise MethodError(
            f"no scores are of seed {seed}",
            where=str(path),
            expected=f"rows with {SEED} = {seed}",
            got="none",
            remedy="compute its scores, or check the file",
        )
    return _pivot(path, _ids(table, train, path), _ids(table, test, path), table.column(value).to_numpy())


def _pivot(path: Path, train: Ids, test: Ids, values: Array) -> Contents:
    rows, row = np.unique(train, return_inverse=True)
    columns, column = np.unique(test, return_inverse=True)
    count = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(count, (row, column), 1)
    if (count != 1).any():
        i, j = (int(k) for k in np.argwhere(count != 1)[0])
        raise MethodError(
            "a pair of samples has no score" if count[i, j] == 0 else "a pair of samples has several scores",
            where=f"{path}, train id {rows[i]}, test id {columns[j]}",
            expected="one row for each pair of a train id and a test id",
            got=f"{count[i, j]} rows; so for {int((count != 1).sum()):,} of {count.size:,} pairs",
            remedy="write each pair once, for all training samples and all test points of the seed",
        )
    scores = np.empty(count.shape, dtype=values.dtype)
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
