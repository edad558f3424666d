"""The samples of an experiment in the store: published once by the driver, read by every worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrep_dist.core.inputs import PackedInputs, form_of
from genrep_dist.core.targets import Labels, class_labels
from genrep_dist.problems.protocol import Dataset
from genrep_dist.problems.tables import from_table, to_table
from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.store.shared_arrays import delete_shared, shared_arrays
from genrep_dist.store.tables import get_table, put_table, read_batches
from genrep_dist.workflow.sample_ids import sample_ids

ROW_GROUP_BYTES = 8 * 2**20
"""Uncompressed bytes that a reader holds at once beside the samples."""
SHARED_BYTES = 2**24
"""Data sets of at most so many bytes are copied into each process."""


def publish_data(store: Store, digest: str, train: Dataset, test: Dataset) -> None:
    """Write the samples where every worker reads them."""
    for name, dataset in (("train", train), ("test", test)):
        path = data_table(digest, name)
        if not store.objects.exists(path):
            table = to_table(dataset)
            put_table(store.objects, path, table, sealed=True, row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes))


def read_data(store: Store, digest: str, name: str) -> Dataset:
    """The samples of 'train' or 'test'.

    Small ones are read into memory. Larger ones are mapped from files that all processes of this machine share, so that their rows are
    read when they are used. Memory: those of a small data set, and a few copies of one row group.
    """
    num_rows, at = len(sample_ids(store, digest, name)), 0
    parts = _parts(store, digest, name)
    first = next(parts)
    if sum(part.nbytes for part in first) * num_rows > SHARED_BYTES * len(first.ids):
        shared = _shared(store, digest, name, first, num_rows)
        if shared is not None:
            return shared
    if len(first.ids) == num_rows:
        return first
    whole = Dataset(*(one.new_empty(num_rows, *one.shape[1:]) for one in first))
    for part in (first, *parts):
        for result, some in zip(whole, part, strict=True):
            result[at : at + len(some)] = some
        at += len(part.ids)
    return whole


def forget_data(digest: str) -> None:
    """Delete what this machine's processes share of the samples, if there is anything."""
    for name in ("train", "test"):
        delete_shared(_shared_name(digest, name))


def _parts(store: Store, digest: str, name: str) -> Iterator[Dataset]:
    """The samples, one row group at a time."""
    path = data_table(digest, name)
    return (from_table(table, f"{store.uri}/{path}") for table in read_batches(store.objects, path))


def _shared(store: Store, digest: str, name: str, first: Dataset, num_rows: int) -> Dataset | None:
    """The samples as mapped files; ``first`` are the first of them."""
    forms = {part: (tensor.numpy().dtype, (num_rows, *tensor.shape[1:])) for part, tensor in first._asdict().items()}

    def arrays() -> Iterator[dict[str, npt.NDArray[Any]]]:
        return ({part: tensor.numpy() for part, tensor in some._asdict().items()} for some in _parts(store, digest, name))

    found = shared_arrays(_shared_name(digest, name), forms, arrays)
    if found is None:
        return None
    samples, form = Dataset(**{part: torch.from_numpy(array) for part, array in found.items()}), form_of(first.inputs)
    return samples if form is None else samples._replace(inputs=PackedInputs.of(samples.inputs, form))


def _shared_name(digest: str, name: str) -> str:
    return f"data-{digest}-{name}"


def target_labels(store: Store, digest: str, name: str, num_outputs: int) -> Labels | None:
    """The class numbers (N,) of the samples of 'train' or 'test'; None if their targets are others. The inputs are not read."""
    targets = get_table(store.objects, data_table(digest, name), columns=["target"]).column("target").to_pylist()
    return class_labels(np.asarray(targets), num_outputs)
