"""The samples of an experiment in the store: published once by the driver, read by every worker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrep_dist.core.targets import Labels, class_labels
from genrep_dist.problems.protocol import Dataset
from genrep_dist.problems.tables import from_table, to_table
from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.store.tables import get_table, put_table, read_batches

ROW_GROUP_BYTES = 8 * 2**20
"""Uncompressed bytes that a reader holds at once beside the samples."""


def publish_data(store: Store, digest: str, train: Dataset, test: Dataset) -> None:
    """Write the samples where every worker reads them."""
    for name, dataset in (("train", train), ("test", test)):
        path = data_table(digest, name)
        if not store.objects.exists(path):
            table = to_table(dataset)
            put_table(store.objects, path, table, sealed=True, row_group_size=max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes))


def read_data(store: Store, digest: str, name: str) -> Dataset:
    """The samples of 'train' or 'test'. Memory: these, and a few copies of one row group."""
    num_rows, at = len(sample_ids(store, digest, name)), 0
    whole: Dataset | None = None
    path = data_table(digest, name)
    for table in read_batches(store.objects, path):
        part = from_table(table, f"{store.uri}/{path}")
        if whole is None:
            whole = part if len(part.ids) == num_rows else Dataset(*(one.new_empty(num_rows, *one.shape[1:]) for one in part))
        if whole is not part:
            for result, some in zip(whole, part, strict=True):
                result[at : at + len(some)] = some
        at += len(part.ids)
    assert whole is not None
    return whole


def target_labels(store: Store, digest: str, name: str, num_outputs: int) -> Labels | None:
    """The class numbers (N,) of the samples of 'train' or 'test'; None if their targets are others. The inputs are not read."""
    targets = get_table(store.objects, data_table(digest, name), columns=["target"]).column("target").to_pylist()
    return class_labels(np.asarray(targets), num_outputs)


def sample_ids(store: Store, digest: str, name: str) -> npt.NDArray[np.int64]:
    """Ids of the samples of 'train' or 'test', in the order of every array; the samples are not read."""
    ids: npt.NDArray[np.int64] = get_table(store.objects, data_table(digest, name), columns=["id"]).column("id").to_numpy()
    return ids
