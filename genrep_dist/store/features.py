"""Blocks of feature rows in an artifact: a table of blocks that the driver declares, and flat arrays of whatever size beside it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.errors import CorruptError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.feature_codec import Packed, pack, unpack

TABLE = "blocks"
"""The array that the driver declares, (N, 6) int64: for each training row the block that it is in."""
COLUMNS = ("start", "stop", "numbers", "places", "bits", "layout")
"""What a row of it says: the block's training rows, and the lengths of the block's arrays (0: there is none)."""
_ARRAYS = {"numbers": "float32", "places": "int32", "bits": "uint8", "layout": "uint8"}


def write_block(artifact: Artifact, part: str, start: int, rows: FactoredGradients, **statistics: Any) -> int:
    """Write float32 ``rows``, which begin at training row ``start``, as one block; its bytes.

    Its rows of the table come last: they say that all else is there. An array's name has its length, so that a second try whose
    numbers come out otherwise, on another machine, leaves what is recorded as it is.
    """
    packed = pack(rows)
    layout = np.frombuffer(packed.layout_bytes(), dtype=np.uint8)
    arrays: dict[str, npt.NDArray[Any]] = {"numbers": packed.numbers, "places": packed.places, "bits": packed.bits, "layout": layout}
    for name, values in arrays.items():
        if values.size:
            full = _array_name(start, name, values.size)
            artifact.create(full, values.shape, values.shape, _ARRAYS[name], (name,))
            artifact.write_part(f"{part}-{name}", full, (0,), values)
    row = [start, start + len(rows), *(array.size for array in arrays.values())]
    artifact.write_part(part, TABLE, (start, 0), np.array([row] * len(rows), dtype=np.int64), **statistics)
    return packed.num_bytes


class RowsReader:
    """Training rows of a committed artifact, from whatever blocks they are in."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._table = artifact.read(TABLE)

    @property
    def num_rows(self) -> int:
        return len(self._table)

    def read(self, start: int, stop: int) -> FactoredGradients:
        """The training rows ``start`` to ``stop``. CorruptError when they are not all there."""
        parts, at = [], start
        while at < stop:
            row = [int(value) for value in self._table[at]] if at < len(self._table) else []
            if not row or not row[0] <= at < row[1]:
                raise CorruptError(
                    "a row of stored features is missing",
                    where=f"{self._artifact.path}, training row {at}",
                    expected=f"a block that holds it, of {len(self._table)} rows in all",
                    got=str(row),
                )
            last = min(stop, row[1])
            whole = self._block(row)
            parts.append(whole if (at, last) == (row[0], row[1]) else whole.part(at - row[0], last - row[0]))
            at = last
        return FactoredGradients.cat(parts)

    def _block(self, row: list[int]) -> FactoredGradients:
        sizes = dict(zip(COLUMNS[2:], row[2:], strict=True))
        arrays = {
            name: self._artifact.reader(_array_name(row[0], name, size)).read() if size else np.empty(0, dtype=_ARRAYS[name])
            for name, size in sizes.items()
        }
        layout = json.loads(arrays["layout"].tobytes())
        rows = unpack(Packed(arrays["numbers"], arrays["places"], arrays["bits"], layout))
        if len(rows) != row[1] - row[0]:
            raise CorruptError(
                "a stored block of features has other rows than its table says",
                where=f"{self._artifact.path}, block of row {row[0]}",
                expected=f"{row[1] - row[0]} rows",
                got=str(len(rows)),
            )
        return rows


def _array_name(start: int, name: str, size: int) -> str:
    return f"rows-{start:09d}-{name}-{size}"
