"""Writing IDX files and small copies of the four MNIST files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array: npt.NDArray[Any]) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def small_mnist(num_train: int = 60, num_test: int = 30, seed: int = 0) -> dict[str, npt.NDArray[np.uint8]]:
    """Random images; row r has label r % 10, so that every class has its rows at known places."""
    generator = np.random.default_rng(seed)
    return {
        "train-images-idx3-ubyte": generator.integers(0, 256, (num_train, 28, 28), dtype=np.uint8),
        "train-labels-idx1-ubyte": (np.arange(num_train) % 10).astype(np.uint8),
        "t10k-images-idx3-ubyte": generator.integers(0, 256, (num_test, 28, 28), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": (np.arange(num_test) % 10).astype(np.uint8),
    }


def write_folder(folder: Path, arrays: dict[str, npt.NDArray[np.uint8]], *, compressed: bool = False, dotted: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        spelled = name.replace("-idx", ".idx") if dotted else name
        data = idx_bytes(array)
        (folder / (spelled + (".gz" if compressed else ""))).write_bytes(gzip.compress(data) if compressed else data)
    return folder
