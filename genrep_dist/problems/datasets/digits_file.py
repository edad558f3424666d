"""The file of scikit-learn that ``sklearn.datasets.load_digits`` reads, found without importing scikit-learn, which takes over a second."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_ROWS, SIDE = 1797, 8


def digits_folder() -> Path:
    """The folder of the data files in scikit-learn; that of this process if scikit-learn is not installed."""
    spec = importlib.util.find_spec("sklearn")
    return Path(".") if spec is None or spec.origin is None else Path(spec.origin).parent / "datasets" / "data"


def read_digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Images (1797, 8, 8) with values 0..16 and labels (1797,)."""
    path = digits_folder() / "digits.csv.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="ascii") as file:
            # Rows of 64 pixels and a label.
            table = np.loadtxt(file, delimiter=",")
        if table.shape == (NUM_ROWS, SIDE * SIDE + 1):
            return table[:, :-1].reshape(-1, SIDE, SIDE).astype(np.float32), table[:, -1].astype(np.int64)
    # Another version may keep its data elsewhere.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.asarray(bunch.images, dtype=np.float32), np.asarray(bunch.target, dtype=np.int64)
