"""Read-only access to Zarr arrays that other tools wrote, in format 2 or 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from genrep_dist.errors import ConfigError


class ZarrArray:
    """One array. Only the requested entries are read."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    def take(self, indices: npt.NDArray[np.int64], axis: int) -> npt.NDArray[Any]:
        """Entries ``indices`` along ``axis``, as :meth:`numpy.ndarray.take`."""
        window: list[Any] = [slice(None)] * len(self.shape)
        window[axis] = indices
        return np.asarray(self._array.oindex[tuple(window)])

    def read(self) -> npt.NDArray[Any]:
        return np.asarray(self._array[...])


@dataclass(frozen=True)
class ZarrFolder:
    """The arrays of a Zarr folder by path ("" if the folder is one array), and the attributes of its root."""

    arrays: Mapping[str, ZarrArray]
    attributes: Mapping[str, Any]


def open_zarr(path: Path) -> ZarrFolder:
    """Open a Zarr folder read-only. ConfigError if it is not one, or its metadata cannot be read."""
    try:
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            return ZarrFolder({"": ZarrArray(found)}, dict(found.attrs))
        arrays = {name: ZarrArray(member) for name, member in found.members(max_depth=None) if isinstance(member, zarr.Array)}
        if not arrays:  # Zarr opens any folder as an empty group
            raise ValueError("no arrays")
        return ZarrFolder(arrays, dict(found.attrs))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            "the folder is not a Zarr array or group",
            where=str(path),
            expected="zarr.json, .zarray or .zgroup",
            got=f"{type(error).__name__}: {error}",
        ) from error
