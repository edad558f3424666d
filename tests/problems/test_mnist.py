from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.catalogue import available
from genrep_dist.problems.datasets.mnist import Mnist
from genrep_dist.problems.load import load_datasets, load_problem, source_digest
from tests.problems.idx_files import idx_bytes, small_mnist, write_folder

needs_files = pytest.mark.skipif(not available("mnist"), reason="the MNIST files are not in the cache: run `genrep data fetch mnist`")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(write_folder(tmp_path / "mnist", small_mnist()))


def test_ids_are_rows_of_the_original_files(folder: str) -> None:
    arrays = small_mnist()
    data, test = load_datasets(Mnist(folder=folder))
    assert data.ids.tolist() == [row for row in range(60) if row % 10 in (3, 8)]
    assert test.ids.tolist() == [60 + row for row in range(30) if row % 10 in (3, 8)]
    assert torch.equal(data.targets, torch.tensor([float(row % 10 == 8) for row in data.ids.tolist()]))
    expected = torch.from_numpy(arrays["train-images-idx3-ubyte"].astype(np.float32) / 255)
    assert torch.equal(data.inputs[:, 0], expected[data.ids])
    expected = torch.from_numpy(arrays["t10k-images-idx3-ubyte"].astype(np.float32) / 255)
    assert torch.equal(test.inputs[:, 0], expected[test.ids - 60])


@pytest.mark.parametrize("form", [{"compressed": True}, {"dotted": True}, {"compressed": True, "dotted": True}])
def test_every_usual_form_gives_the_same_data(tmp_path: Path, folder: str, form: dict[str, bool]) -> None:
    other = str(write_folder(tmp_path / "other", small_mnist(), **form))
    for first, second in zip(load_datasets(Mnist(folder=folder)), load_datasets(Mnist(folder=other)), strict=True):
        for left, right in zip(first, second, strict=True):
            assert torch.equal(left, right)


def test_all_ten_classes(folder: str) -> None:
    problem = Mnist(classes=None, folder=folder)
    data, test = load_datasets(problem)
    assert problem.loss == "softmax"
    assert data.ids.tolist() == list(range(60))
    assert data.targets.tolist() == [row % 10 for row in range(60)]
    assert len(test.ids) == 30
    assert problem.model()(data.inputs[:2]).shape == (2, 10)


def test_subsamples_are_stratified_and_nested(folder: str) -> None:
    ids = []
    for train_size in (4, 8):
        data, test = load_datasets(Mnist(folder=folder, train_size=train_size, test_size=2))
        assert float(data.targets.mean()) == 0.5
        assert len(test.ids) == 2
        ids.append(set(data.ids.tolist()))
    assert ids[0] < ids[1]
    assert len(ids[1]) == 8


def test_at_most_per_class_rows_of_each_class_are_trained_on(folder: str) -> None:
    data, test = load_datasets(Mnist(folder=folder, classes=[3, 8, 0], per_class=2))
    assert torch.bincount(data.targets).tolist() == [2, 2, 2]
    assert len(test.ids) == 9


def test_the_digest_does_not_depend_on_where_the_files_lie(folder: str, tmp_path: Path) -> None:
    options = [{"folder": folder, "train_size": 8}, {"folder": str(tmp_path), "train_size": 8}, {"folder": folder, "train_size": 4}]
    first, moved, smaller = (source_digest(load_problem("mnist", option), option) for option in options)
    assert first == moved
    assert first != smaller


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [3, 12]}, "a class has no rows"),
        ({"train_size": 13}, "at most 12"),
        ({"test_size": 7}, "at most 6"),
        ({"train_size": 1}, "no rows"),
    ],
)
def test_what_the_files_cannot_give_is_refused(folder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        load_datasets(Mnist(folder=folder, **options))


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    arrays = small_mnist()
    arrays["train-images-idx3-ubyte"] = arrays["train-images-idx3-ubyte"][:-1]
    folder = write_folder(tmp_path / "short", arrays)
    with pytest.raises(ProblemError, match="numbers of images and labels differ"):
        Mnist(folder=str(folder)).train_data()
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((60, 27, 28), dtype=np.uint8)))
    with pytest.raises(ProblemError, match="wrong shape"):
        Mnist(folder=str(folder)).train_data()


def test_without_files_the_model_is_there_and_the_data_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREP_DATA", str(tmp_path))
    problem = load_problem("mnist")
    assert sum(parameter.numel() for parameter in problem.model().parameters()) == 93_825
    with pytest.raises(ProblemError, match="genrep data fetch mnist"):
        problem.train_data()


@needs_files
def test_the_real_files_hold_what_is_known_of_them() -> None:
    data, test = load_datasets(Mnist(classes=None, per_class=None))
    assert torch.bincount(data.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.ids.tolist() == list(range(60_000))
    assert test.ids.tolist() == list(range(60_000, 70_000))


@needs_files
def test_the_papers_subsample_of_the_real_files() -> None:
    data, test = load_datasets(Mnist())
    assert data.inputs.shape == (6000 + 5851, 1, 28, 28)
    assert int(data.targets.sum()) == 5851
    assert test.inputs.shape == (1984, 1, 28, 28)
    small = Mnist(train_size=1000).train_data()
    assert small.ids[:4].tolist() == [215, 250, 300, 393]
    assert set(small.ids.tolist()) < set(data.ids.tolist())
