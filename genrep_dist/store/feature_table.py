"""The form of stored features: the arrays of a block and the table of blocks. The planner reads it, without torch."""

from __future__ import annotations

import numpy as np

DTYPES = {"values": np.float32, "indices": np.int32, "masks": np.uint8}
"""The flat arrays of a block."""
TABLE = "blocks"
"""The declared array, (N, 6) int64: for each training row the block that contains it."""
COLUMNS = ("start", "stop", *DTYPES, "layout")
"""Columns of the table: the block's training rows, and the lengths of its arrays (0: the array does not exist)."""
