"""Zarr arrays that another tool wrote: opened to be read, never written. Format 2 or 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from genrep_dist.errors import ConfigError


class ForeignArray:
    """One array, of which only what is taken is read."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    def take(self, indices: npt.NDArray[np.int64], axis: int) -> npt.NDArray[Any]:
        """Entries ``indices`` along ``axis``, in that order, as :meth:`numpy.ndarray.take` does."""
        window: list[Any] = [slice(None)] * len(self.shape)
        window[axis] = indices
        return np.asarray(self._array.oindex[tuple(window)])

    def read(self) -> npt.NDArray[Any]:
        return np.asarray(self._array[...])


@dataclass(frozen=True)
class Foreign:
    """What lies in a Zarr folder: its arrays by path ("" for a folder that is one array), and the attributes of its root."""

    arrays: Mapping[str, ForeignArray]
    attributes: Mapping[str, Any]


def open_foreign(path: Path) -> Foreign:
    """Open a Zarr folder read-only. ConfigError when it is none, or one whose metadata cannot be read."""
    try:
        found = zarr.open(str(path), mode="r")
        if isinstance(found, zarr.Array):
            return Foreign({"": ForeignArray(found)}, dict(found.attrs))
        members = found.members(max_depth=None)
        arrays = {name: ForeignArray(member) for name, member in members if isinstance(member, zarr.Array)}
        if not arrays:  # zarr takes any folder for an empty group
            raise ValueError("no arrays")
        return Foreign(arrays, dict(found.attrs))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            "this folder is no Zarr array or group",
            where=str(path),
            expected="zarr.json, .zarray or .zgroup",
            got=f"{type(error).__name__}: {error}",
        ) from error
