"""The arrays of .npz and .pt files of other tools, checked by what they claim before any of it is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.limits import MAX_COLUMNS, LimitError, require_count, require_fits

Array = npt.NDArray[Any]


class NpzArray:
    """One array of an .npz file, by its header. Its numbers are read by :meth:`read`."""

    def __init__(self, path: Path, member: str, archive: zipfile.ZipFile) -> None:
        self._path, self._member = path, member
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            self.shape, _, self.dtype = read(stream)
        if self.dtype.hasobject:
            raise ValueError(f"Python objects in {member}")

    @property
    def num_bytes(self) -> int:
        """Of all its numbers."""
        return math.prod(self.shape) * int(self.dtype.itemsize)

    def read(self) -> Array:
        """The array. LimitError for one that memory cannot hold."""
        require_fits(self.num_bytes, f"the array {self._member}")
        with self._path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            found: Array = archive[self._member]
            return found

    def take(self, indices: npt.NDArray[np.int64], axis: int) -> Array:
        """Entries ``indices`` along ``axis``, as :meth:`numpy.ndarray.take`."""
        return self.read().take(indices, axis)


def open_npz(path: Path) -> dict[str, NpzArray]:
    """The arrays of an .npz file by name. ValueError, BadZipFile and LimitError for what is none."""
    with zipfile.ZipFile(path) as archive:
        members = [info.filename for info in archive.infolist() if info.filename.endswith(".npy")]
        require_count(len(members), "arrays")
        return {member.removesuffix(".npy"): NpzArray(path, member, archive) for member in members}


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an .npz file, which together must fit memory."""
    found = open_npz(path)
    require_fits(sum(array.num_bytes for array in found.values()), "all arrays together")
    return {name: array.read() for name, array in found.items()}


def load_tensors(path: Path) -> Any:
    """What ``torch.load`` reads of tensors and plain values. LimitError for tensors that are larger than their file."""
    import torch

    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        require_count(len(members), "entries", MAX_COLUMNS)
        size = sum(info.file_size for info in members)
        if any(info.compress_type != zipfile.ZIP_STORED for info in members):
            raise LimitError("compressed entries, which torch.save does not write")
    require_fits(size, "the file")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    _check_tensors(loaded, size, lambda value: isinstance(value, torch.Tensor))
    return loaded


def _check_tensors(loaded: Any, size: int, is_tensor: Callable[[Any], bool]) -> None:
    """A tensor can repeat a few stored numbers as often as it likes, and a list can hold another one many times."""
    values = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
    for value in values:
        if is_tensor(value) and value.numel() * value.element_size() > size:
            raise LimitError(f"a tensor of shape {tuple(value.shape)}, larger than its file of {size:,} bytes: save it contiguous")
        if isinstance(value, list) and any(isinstance(item, (list, tuple, dict)) or is_tensor(item) for item in value):
            raise LimitError("a list of lists, where a list of ids is read")
