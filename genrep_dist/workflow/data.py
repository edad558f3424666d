"""The samples of an experiment in the store: published once by the driver, read by every worker."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from genrep_dist.problems.protocol import Dataset
from genrep_dist.problems.tables import from_table, to_table
from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.store.tables import get_table, put_table


def publish_data(store: Store, digest: str, train: Dataset, test: Dataset) -> None:
    """Write the samples where every worker reads them."""
    for name, dataset in (("train", train), ("test", test)):
        path = data_table(digest, name)
        if not store.objects.exists(path):
            put_table(store.objects, path, to_table(dataset))


def read_data(store: Store, digest: str, name: str) -> Dataset:
    """The samples of 'train' or 'test'."""
    return from_table(get_table(store.objects, data_table(digest, name)))


def sample_ids(store: Store, digest: str, name: str) -> npt.NDArray[np.int64]:
    """Ids of the samples of 'train' or 'test', in the order of every array; the samples are not read."""
    ids: npt.NDArray[np.int64] = get_table(store.objects, data_table(digest, name), columns=["id"]).column("id").to_numpy()
    return ids
