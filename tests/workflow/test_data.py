"""Samples in the store: read a row group at a time, as they were published."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import genrep_dist as gr
from genrep_dist.errors import StoreError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.store import Store
from genrep_dist.store.paths import data_table
from genrep_dist.workflow import data
from genrep_dist.workflow import prepare as preparation
from genrep_dist.workflow.context import WorkerContext
from genrep_dist.workflow.data import forget_data, publish_data, read_data
from genrep_dist.workflow.features import train_features
from genrep_dist.workflow.prepare import prepare, publish_inputs, with_stored_data
from tests.experiments import ROOT
from tests.toys import Blobs

LOADED = list[weakref.ref[torch.Tensor]]()
ALIVE = list[int]()
"""The inputs that the problem has returned, and how many of them there were each time that a model was built."""


class Watched(Blobs):
    """Says which of its samples are still in memory."""

    def train_data(self) -> Dataset:
        found = super().train_data()
        LOADED.append(weakref.ref(found.inputs))
        return found

    def model(self) -> nn.Module:
        ALIVE.append(sum(one() is not None for one in LOADED))
        return super().model()


class Large:
    """32 MiB of inputs."""

    loss = "logistic"
    recipe = Recipe(epochs=1, batch_size=64, learning_rate=0.1)

    def model(self) -> nn.Module:
        return nn.Linear(1024, 1)

    def train_data(self) -> Dataset:
        return self._data(2**13)

    def test_data(self) -> Dataset:
        return self._data(4)

    def _data(self, rows: int) -> Dataset:
        inputs = torch.randn(rows, 1024, generator=torch.Generator().manual_seed(0))
        return Dataset(inputs, (inputs[:, 0] > 0).float(), torch.arange(rows))


def declared(problem: str) -> gr.Experiment:
    about = {"name": "data", "problem": {"name": f"tests.workflow.test_data:{problem}"}, "seeds": 1, "test_points": 2}
    return gr.Experiment.model_validate({**about, "methods": ["ntk-final/target", "random"], "deletion": {"counts": [0, 1]}})


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


def test_the_driver_does_not_keep_what_the_problem_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data, preparation):
        monkeypatch.setattr(module, "SHARED_BYTES", 100)
    LOADED.clear()
    ALIVE.clear()
    run = gr.run(declared("Watched"), store=str(tmp_path), serial=True, search_path=[str(ROOT)])
    assert LOADED
    assert (max(ALIVE), ALIVE[-1]) == (1, 0)
    assert run.train.ids.tolist() == Blobs().train_data().ids.tolist()


def test_small_samples_are_not_read_again(tmp_path: Path) -> None:
    prepared = prepare(declared("Watched"), Store(str(tmp_path)), [str(ROOT)])
    publish_inputs(prepared)
    assert with_stored_data(prepared) is prepared


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_features_of_some_rows_read_these_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREP_SCRATCH", str(tmp_path / "scratch"))
    prepared = prepare(declared("Large"), Store(str(tmp_path)), [str(ROOT)])
    publish_inputs(prepared)
    stored = with_stored_data(prepared)
    assert torch.equal(stored.train.inputs, prepared.train.inputs)
    del stored
    context, model = WorkerContext(prepared.job), nn.Linear(1024, 1).eval()
    monkeypatch.setattr(context, "model", lambda seed, epoch: model)
    before = mapped_bytes("train.inputs")
    train_features(context, "ntk", 0, 1, 4096, 4096 + 64)
    assert mapped_bytes("train.inputs") - before <= 2**22
    assert before <= 2**21
    float(context.train.inputs.sum())
    assert mapped_bytes("train.inputs") >= 2**25
    forget_data(prepared.plan.keys.data)


def mapped_bytes(name: str) -> int:
    """Resident bytes of this process's mappings of files of that name."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key = line.split()[0]
        if not key.endswith(":"):
            inside = name in line
        elif inside and key == "Rss:":
            total += 1024 * int(line.split()[1])
    return total
