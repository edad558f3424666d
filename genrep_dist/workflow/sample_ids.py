"""The ids of an experiment's samples, read from the store without the samples, and without torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.store.tables import get_table


def sample_ids(store: Store, digest: str, name: str) -> npt.NDArray[np.int64]:
    """Ids of the samples of 'train' or 'test', in the order of every array; the samples are not read."""
    column = get_table(store.objects, data_table(digest, name), columns=["id"]).column("id")
    # By polars, because pyarrow's own way to numpy imports pandas.
    ids: npt.NDArray[np.int64] = pl.Series(column).to_numpy(writable=True)
    return ids
