from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets import cifar_files
from genrep_dist.problems.datasets.catalogue import available, fetch
from genrep_dist.problems.datasets.cifar import Cifar10
from genrep_dist.problems.datasets.cifar_files import CIFAR10_SHA1, TEST_BATCH, TRAIN_BATCHES, batch_bytes, read_batches
from genrep_dist.problems.datasets.package_archives import Archive
from genrep_dist.problems.load import load_datasets
from tests.problems.fake_libraries import put_datasets, put_torchvision, take_away
from tests.problems.test_package_archives import make_tar

ROWS = 20

needs_files = pytest.mark.skipif(not available("cifar10"), reason="CIFAR-10 is not in the cache: run `genrep data fetch cifar10`")


def images_of(name: str) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(len(name) + ord(name[-5])).integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)


LABELS = (np.arange(ROWS) % 10).astype(np.uint8)
IMAGES = {name: images_of(name) for name in CIFAR10_SHA1}
BATCHES = {name: batch_bytes(images, LABELS) for name, images in IMAGES.items()}


def png(images: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a world in which batches of 20 rows are the canonical ones; the archive that holds them."""
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(cifar_files, "BATCH_ROWS", ROWS)
    sha1 = {name: hashlib.sha1(data, usedforsecurity=False).hexdigest() for name, data in BATCHES.items()}
    monkeypatch.setattr(cifar_files, "CIFAR10_SHA1", sha1)
    members = {f"package/{name.replace('.bin', '.png')}": png(images) for name, images in IMAGES.items()}
    members["package/train_lables.json"] = json.dumps([int(label) for label in LABELS] * 5).encode()
    members["package/test_lables.json"] = json.dumps(LABELS.tolist()).encode()
    path = make_tar(tmp_path / "pictures-1.0.tgz", members)
    known = cifar_files.CIFAR10_ARCHIVES[0]
    archive = Archive("npm", "genrep-pictures", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), known.members)
    monkeypatch.setattr(cifar_files, "CIFAR10_ARCHIVES", (archive,))
    return path


def check_cached() -> None:
    images, labels = read_batches(TRAIN_BATCHES)
    assert np.array_equal(images, np.concatenate([IMAGES[name].transpose(0, 3, 1, 2) for name in TRAIN_BATCHES]))
    assert np.array_equal(labels, np.tile(LABELS, 5))
    assert np.array_equal(read_batches((TEST_BATCH,))[0], IMAGES[TEST_BATCH].transpose(0, 3, 1, 2))


def test_batches_are_rebuilt_from_the_pictures_of_an_archive(small: Path) -> None:
    assert not available("cifar10")
    fetch("cifar10", str(small))
    assert available("cifar10")
    check_cached()


def test_the_published_archive_and_a_folder_are_read(small: Path, tmp_path: Path) -> None:
    assert small.is_file()
    published = make_tar(tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{name}": data for name, data in BATCHES.items()})
    fetch("cifar10", str(published))
    check_cached()
    with tarfile.open(published) as archive:
        archive.extractall(tmp_path / "mine", filter="data")
    (tmp_path / "cache" / "cifar10" / "manifest.json").unlink()
    fetch("cifar10", str(tmp_path / "mine"))
    check_cached()


@pytest.mark.usefixtures("small")
def test_torchvision_and_the_hub_give_the_same_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train = np.concatenate([IMAGES[name] for name in TRAIN_BATCHES])
    parts = {True: (train, np.tile(LABELS, 5)), False: (IMAGES[TEST_BATCH], LABELS)}

    def build(root: str, train: bool, download: bool) -> Any:
        assert download
        assert Path(root).is_dir()
        return SimpleNamespace(data=parts[train][0], targets=parts[train][1].tolist())

    put_torchvision(monkeypatch, "CIFAR10", build)
    fetch("cifar10", "torchvision")
    check_cached()
    (tmp_path / "cache" / "cifar10" / "manifest.json").unlink()
    rows = {
        ("uoft-cs/cifar10", split): {"img": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        for split, (images, labels) in (("train", parts[True]), ("test", parts[False]))
    }
    put_datasets(monkeypatch, rows)
    fetch("cifar10", "huggingface")
    check_cached()


@pytest.mark.usefixtures("small")
def test_what_is_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, "torchvision")
    take_away(monkeypatch, "datasets")
    with pytest.raises(ProblemError, match=r"pip install 'genrep-dist\[torchvision\]'"):
        fetch("cifar10", "torchvision")
    with pytest.raises(ProblemError, match=r"pip install 'genrep-dist\[huggingface\]'"):
        fetch("cifar10", "huggingface")
    put_datasets(monkeypatch, {})
    with pytest.raises(ProblemError, match="offline"):
        fetch("cifar10", "huggingface")
    with pytest.raises(ProblemError, match="genrep data fetch cifar10"):
        Cifar10().train_data()


def test_other_pictures_are_refused(small: Path, tmp_path: Path) -> None:
    assert small.is_file()
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in BATCHES.items():
        (folder / name).write_bytes(data if name != "data_batch_3.bin" else data[:-1] + b"\x00")
    with pytest.raises(ProblemError, match=r"not the published data_batch_3\.bin"):
        fetch("cifar10", str(folder))
    assert not available("cifar10")


def test_a_damaged_cache_is_refused_and_replaced(small: Path, tmp_path: Path) -> None:
    fetch("cifar10", str(small))
    batch = tmp_path / "cache" / "cifar10" / "data_batch_1.bin"
    batch.write_bytes(bytes(len(BATCHES[batch.name])))
    with pytest.raises(ProblemError, match="damaged"):
        read_batches(TRAIN_BATCHES)
    fetch("cifar10", str(small))
    check_cached()


def test_ids_are_rows_of_the_batches(small: Path) -> None:
    fetch("cifar10", str(small))
    data, test = load_datasets(Cifar10(classes=[5, 3]))
    assert data.ids.tolist() == [row for row in range(100) if row % 10 in (3, 5)]
    assert data.targets.tolist() == [float(row % 10 == 3) for row in data.ids.tolist()]
    assert test.ids.tolist() == [50_000 + row for row in range(20) if row % 10 in (3, 5)]
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = torch.from_numpy(IMAGES["data_batch_1.bin"][3].astype(np.float32) / 255)
    torch.testing.assert_close(data.inputs[0], ((pixels - mean) / std).permute(2, 0, 1))


def test_all_classes_sizes_and_seeds(small: Path) -> None:
    fetch("cifar10", str(small))
    every, _ = load_datasets(Cifar10(classes=None))
    assert every.targets.tolist() == [row % 10 for row in range(100)]
    first, again, other = (Cifar10(train_size=10, split_seed=seed).train_data() for seed in (0, 0, 1))
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)
    assert float(first.targets.mean()) == 0.5
    assert set(first.ids.tolist()) < set(Cifar10(train_size=16).train_data().ids.tolist())


@pytest.mark.parametrize(("options", "message"), [({"classes": [3, 10]}, "no such class"), ({"split_seed": -1}, "split_seed")])
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        Cifar10(**options)


@needs_files
def test_the_real_images() -> None:
    problem = Cifar10(train_size=400, test_size=100)
    assert sum(parameter.numel() for parameter in problem.model().parameters()) == 95_297
    data, test = load_datasets(problem)
    assert (data.inputs.shape, test.inputs.shape) == ((400, 3, 32, 32), (100, 3, 32, 32))
    _, labels = read_batches(TRAIN_BATCHES)
    assert np.bincount(labels).tolist() == [5000] * 10
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert data.targets.sum() == 200
    assert torch.equal(data.targets, torch.from_numpy((labels[data.ids] == 7).astype(np.float32)))
    assert abs(float(data.inputs.mean())) < 0.2
    assert 0.8 < float(data.inputs.std()) < 1.2
