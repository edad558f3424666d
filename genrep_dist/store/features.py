"""Blocks of feature rows in an artifact: a table of blocks, which the driver declares, and flat arrays of varying lengths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.errors import CorruptError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.bfloat16 import float32_tensor, upper_halves
from genrep_dist.store.feature_codec import PackedRows, pack, unpack
from genrep_dist.store.feature_table import DTYPES, TABLE

_DTYPES = {**DTYPES, "layout": np.uint8}


def write_block(artifact: Artifact, part: str, start: int, rows: FactoredGradients, *, bfloat16: bool = False, **statistics: Any) -> int:
    """Write float32 ``rows``, which begin at training row ``start``, as one block; its bytes.

    ``bfloat16``: the numbers are of that dtype, and take two bytes each.

    The block's rows of the table are written last and vouch for its arrays. An array's name contains its length, so that a second
    attempt with other lengths, on another machine, does not overwrite recorded arrays.
    """
    packed = pack(rows)
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(packed, name) for name in DTYPES}
    arrays["layout"] = np.frombuffer(packed.layout_bytes(), dtype=np.uint8)
    if bfloat16:
        arrays["values"] = upper_halves(arrays["values"])
    for name, values in arrays.items():
        if values.size:
            full_name = _array_name(start, name, values.size)
            artifact.create(full_name, values.shape, values.shape, str(values.dtype), (name,))
            artifact.write_part(f"{part}-{name}", full_name, (0,), values)
    row = [start, start + len(rows), *(array.size for array in arrays.values())]
    artifact.write_part(part, TABLE, (start, 0), np.array([row] * len(rows), dtype=np.int64), **statistics)
    return sum(values.nbytes for values in arrays.values())


class RowsReader:
    """Reads training rows of a committed artifact, across blocks."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._table = artifact.read(TABLE)

    @property
    def num_rows(self) -> int:
        return len(self._table)

    def read(self, start: int, stop: int) -> FactoredGradients:
        """Training rows ``start`` to ``stop``. CorruptError if one is missing."""
        parts, at = [], start
        while at < stop:
            row = [int(value) for value in self._table[at]] if at < len(self._table) else []
            if not row or not row[0] <= at < row[1]:
                raise CorruptError(
                    "a row of stored features is missing",
                    where=f"{self._artifact.path}, training row {at}",
                    expected=f"a block that contains it, of {len(self._table)} rows in all",
                    got=str(row),
                )
            last = min(stop, row[1])
            block = self._read_block(row)
            parts.append(block if (at, last) == (row[0], row[1]) else block.part(at - row[0], last - row[0]))
            at = last
        return FactoredGradients.cat(parts)

    def _read_block(self, row: list[int]) -> FactoredGradients:
        sizes = dict(zip(_DTYPES, row[2:], strict=True))
        arrays = {
            name: self._artifact.reader(_array_name(row[0], name, size)).read() if size else np.empty(0, dtype=_DTYPES[name])
            for name, size in sizes.items()
        }
        arrays["values"] = float32_tensor(arrays["values"]).numpy()
        layout = json.loads(arrays.pop("layout").tobytes())
        rows = unpack(PackedRows(**arrays, layout=layout))
        if len(rows) != row[1] - row[0]:
            raise CorruptError(
                "a stored block of features has other rows than its table states",
                where=f"{self._artifact.path}, block of row {row[0]}",
                expected=f"{row[1] - row[0]} rows",
                got=str(len(rows)),
            )
        return rows


def _array_name(start: int, name: str, size: int) -> str:
    return f"rows-{start:09d}-{name}-{size}"
