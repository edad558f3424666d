"""Read-only access to Zarr arrays that other tools wrote, in format 2 or 3."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import ConfigError
from genrep_dist.limits import MAX_DEPTH, LimitError, read_json, require_count, require_fits

if TYPE_CHECKING:
    import zarr


class ZarrArray:
    """One array. Only the requested entries are read."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)
        if self.dtype.kind not in "biufcUS":
            raise LimitError(f"entries of type {self.dtype}, where numbers are read")
        # A chunk is decoded as a whole.
        require_fits(math.prod(array.chunks) * self.dtype.itemsize, "a chunk")

    @property
    def num_bytes(self) -> int:
        """Of all entries."""
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, indices: npt.NDArray[np.int64], axis: int) -> npt.NDArray[Any]:
        """Entries ``indices`` along ``axis``, as :meth:`numpy.ndarray.take`."""
        require_fits(self.num_bytes // max(1, self.shape[axis]) * len(indices), "the scores")
        window: list[Any] = [slice(None)] * len(self.shape)
        window[axis] = indices
        return np.asarray(self._array.oindex[tuple(window)])

    def read(self) -> npt.NDArray[Any]:
        require_fits(self.num_bytes, "an array")
        return np.asarray(self._array[...])


@dataclass(frozen=True)
class ZarrFolder:
    """The arrays of a Zarr folder by path ("" if the folder is one array), and the attributes of its root."""

    arrays: Mapping[str, ZarrArray]
    attributes: Mapping[str, Any]


def open_zarr(path: Path) -> ZarrFolder:
    """Open a Zarr folder read-only. ConfigError if it is not one, or its metadata cannot be read."""
    import zarr  # takes long to import, and most experiments have no scores from other tools

    try:
        _check_folder(path)
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            return ZarrFolder({"": ZarrArray(found)}, dict(found.attrs))
        members = found.members(max_depth=MAX_DEPTH)
        arrays = {name: ZarrArray(member) for name, member in members if isinstance(member, zarr.Array)}
        if not arrays:  # Zarr opens any folder as an empty group
            raise ValueError("no arrays")
        return ZarrFolder(arrays, dict(found.attrs))
    except Exception as error:  # Zarr raises anything for metadata that it does not know
        raise ConfigError(
            "the folder is not a Zarr array or group",
            where=str(path),
            expected="zarr.json, .zarray or .zgroup",
            got=f"{type(error).__name__}: {error}",
        ) from error


def _check_folder(path: Path) -> None:
    """Raise LimitError for links, for too many arrays, and for metadata that are too long or too deep."""
    groups = 0
    for folder, folders, files in os.walk(path):
        links = [name for name in (*folders, *files) if os.path.islink(os.path.join(folder, name))]
        if links:
            raise LimitError(f"a link, {os.path.relpath(os.path.join(folder, links[0]), path)}, where files and folders are read")
        for name in files:
            if name in _METADATA:
                groups += 1
                require_count(groups, "files of metadata")
                read_json(Path(folder, name))


_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
