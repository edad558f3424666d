"""Features in bfloat16: Zarr has no such dtype, so that the upper half of each float32 is stored as uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STORED = "uint16"
"""The dtype of an array of bfloat16 numbers in the store."""


def upper_halves(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint16]:
    """The bfloat16 numbers ``values``, as they are stored."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def float32_tensor(stored: npt.NDArray[Any]) -> Tensor:
    """An array of the store as float32: one of upper halves, or one that is float32 already."""
    if stored.dtype != np.dtype(STORED):
        return torch.from_numpy(stored)
    return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
