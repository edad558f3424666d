"""Score files in every format, written by plain means, and what must be read from them, looked up pair by pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from genrep_dist.config.sections import ExternalSection
from genrep_dist.external import ExternalScores, load_external

Array = npt.NDArray[Any]

TRAIN_IDS = np.array([40, 7, 19, 3, 100, 55, 21], dtype=np.int64)
TEST_IDS = np.array([9, 2, 77, 30, 11], dtype=np.int64)
POSITIONS = {0: [1, 3], 1: [0, 4], 2: [2, 3]}
MODELS = {0: "a" * 64, 1: "b" * 64, 2: "c" * 64}


def scores(seed: int = 0) -> Array:
    """Scores of the whole test set (N, T), all different."""
    return np.random.default_rng(seed).normal(size=(len(TRAIN_IDS), len(TEST_IDS)))


def expected(matrix: Array, train_ids: Sequence[int], test_ids: Sequence[int], seed: int = 0, sign: float = 1.0) -> Array:
    """Phi of ``seed`` from a (train x test) matrix and the ids of its rows and columns: one look-up after the other."""
    by_pair = {(i, j): matrix[r, c] for r, i in enumerate(train_ids) for c, j in enumerate(test_ids)}
    points = [int(TEST_IDS[p]) for p in POSITIONS[seed]]
    return np.array([[sign * by_pair[int(i), j] for j in points] for i in TRAIN_IDS], dtype=np.float64)


def section(path: str | Path, **fields: Any) -> ExternalSection:
    return ExternalSection.model_validate({"path": str(path), "positive_raises": True, **fields})


def load(path: str | Path, seeds: Sequence[int] = (0,), folders: Sequence[Path] = (Path(),), **fields: Any) -> dict[int, ExternalScores]:
    return load_external(
        "theirs",
        section(path, **fields),
        folders,
        seeds=seeds,
        models=MODELS,
        train_ids=TRAIN_IDS,
        test_ids=TEST_IDS,
        positions=POSITIONS,
    )


# -- writers: (path, matrix as it shall lie there, train ids, test ids, model) ----------------------------------------------------

Parts = Mapping[str, Any]


def parts(matrix: Array, train_ids: Any = None, test_ids: Any = None, model: str | None = None) -> dict[str, Any]:
    given = {"scores": matrix, "train_ids": train_ids, "test_ids": test_ids, "model": model}
    return {name: value for name, value in given.items() if value is not None}


def write_npz(path: Path, held: Parts) -> None:
    entries: dict[str, Any] = {name: np.asarray(value) for name, value in held.items()}
    np.savez(path, **entries)


def write_npy(path: Path, held: Parts) -> None:
    """The matrix alone; ids and model beside it."""
    with path.open("wb") as file:
        np.save(file, held["scores"])
    rest = {name: value if isinstance(value, str) else np.asarray(value).tolist() for name, value in held.items() if name != "scores"}
    if rest:
        path.with_name(path.name + ".json").write_text(json.dumps(rest))


def write_pt(path: Path, held: Parts) -> None:
    torch.save({name: value if isinstance(value, str) else torch.tensor(np.asarray(value)) for name, value in held.items()}, path)


def write_safetensors(path: Path, held: Parts) -> None:
    files = pytest.importorskip("safetensors.torch", reason="the package safetensors is optional")
    tensors = {name: torch.tensor(np.ascontiguousarray(value)) for name, value in held.items() if name != "model"}
    files.save_file(tensors, path, metadata={"genrep.model": held["model"]} if "model" in held else None)


def write_zarr(path: Path, held: Parts, zarr_format: int = 3) -> None:
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for name in ("scores", "train_ids", "test_ids"):
        if name in held:
            group.create_array(name, data=np.asarray(held[name]))
    if "model" in held:
        group.attrs["genrep.model"] = held["model"]


def write_zarr_2(path: Path, held: Parts) -> None:
    write_zarr(path, held, zarr_format=2)


FORMATS: dict[str, tuple[str, Callable[[Path, Parts], None]]] = {
    "npz": (".npz", write_npz),
    "npy": (".npy", write_npy),
    "mmap": (".mmap", write_npy),
    "pt": (".pt", write_pt),
    "safetensors": (".safetensors", write_safetensors),
    "zarr 3": (".zarr", write_zarr),
    "zarr 2": (".zarr", write_zarr_2),
}
"""Formats of one matrix with ids and model: ending and writer."""


def write_matrix_parquet(path: Path, matrix: Array, rows: Any, columns: Any, id_column: str = "train_id", model: str | None = None) -> None:
    """An id column, and one column for each id of the other side."""
    data = {id_column: pa.array(np.asarray(rows))} | {str(int(name)): pa.array(matrix[:, j]) for j, name in enumerate(columns)}
    pq.write_table(pa.table(data).replace_schema_metadata({"genrep.model": model} if model else {}), path)


def pairs(matrix: Array, train_ids: Any, test_ids: Any, seed: int | None = None) -> dict[str, Array]:
    """One row for each pair."""
    train, test = np.meshgrid(np.asarray(train_ids), np.asarray(test_ids), indexing="ij")
    columns = {"train_id": train.ravel(), "test_id": test.ravel(), "score": matrix.ravel()}
    return columns | ({"seed": np.full(matrix.size, seed)} if seed is not None else {})


def write_pairs(path: Path, *tables: Mapping[str, Array], model: str | None = None, order: Array | None = None) -> None:
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    columns = columns if order is None else {name: values[order] for name, values in columns.items()}
    pq.write_table(pa.table(columns).replace_schema_metadata({"genrep.model": model} if model else {}), path)
