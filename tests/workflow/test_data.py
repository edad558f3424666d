"""Samples in the store: read a row group at a time, as they were published."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from genrep_dist.errors import StoreError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.workflow import data
from genrep_dist.workflow.data import publish_data, read_data


@pytest.mark.parametrize(("row_group_bytes", "several"), [(2**20, False), (500, True), (1, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_what_is_read_is_what_was_published(
    tmp_path: Path, row_group_bytes: int, several: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ROW_GROUP_BYTES", row_group_bytes)
    train = Dataset(torch.arange(13 * 2 * 3).reshape(13, 2, 3).to(dtype), torch.rand(13, 2), torch.arange(13) * 7)
    test = Dataset(torch.ones(2, 2, 3, dtype=dtype), torch.rand(2, 2), torch.arange(2))
    store = Store(str(tmp_path))
    publish_data(store, "digest", train, test)
    assert (pq.ParquetFile(tmp_path / data_table("digest", "train")).num_row_groups > 1) == several
    for name, published in (("train", train), ("test", test)):
        found = read_data(store, "digest", name)
        assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(found, published, strict=True))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such table"):
        read_data(Store(str(tmp_path)), "digest", "train")
