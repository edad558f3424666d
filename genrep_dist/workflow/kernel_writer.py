"""Writing K(train, test) of a derived kernel while it is computed: some rows at a time, so that all of it is never in memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genrep_dist.core.kernels.base import DerivedKernel
from genrep_dist.errors import ProblemError
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.kernel_sizes import chunk_rows
from genrep_dist.workflow.returned import checked_tensor


class KernelWriter:
    """Takes the blocks of ``kernel`` in order and writes K (N, C, M) float32 as the array "kernel" of ``artifact``, in chunks of rows.

    A block that starts at row 0 restarts the writing. Memory: one chunk, and its float32 copy.
    """

    def __init__(self, artifact: Artifact, shape: tuple[int, int, int], kernel: DerivedKernel, where: str) -> None:
        self._artifact, self._shape, self._kernel, self._where = artifact, shape, kernel, where
        rows = chunk_rows(*shape)
        self._chunk = np.empty((min(rows, shape[0]), *shape[1:]), dtype=np.float32)
        self._next = 0
        artifact.create("kernel", shape, self._chunk.shape, "float32", ("train", "output", "test"))

    def add(self, start: int, block: Tensor) -> None:
        """Take K (B, C, M) of the rows from ``start`` on. Raises ProblemError or NonFiniteError for what is no such block."""
        if start == 0:
            self._next = 0
        if start != self._next:
            raise self._misplaced(f"a block from row {self._next} on, or from 0", f"row {start}")
        rows = len(block) if isinstance(block, Tensor) and block.dim() else 0
        block = checked_tensor(
            block, (min(max(rows, 1), self._shape[0] - start), *self._shape[1:]), self._kernel, "write_rows", self._where
        )
        self._next = start + len(block)
        size, at = len(self._chunk), 0
        while at < len(block):
            place = (start + at) % size
            some = block[at : at + size - place]
            self._chunk[place : place + len(some)] = some.detach().to("cpu", torch.float32).numpy()
            at += len(some)
            if place + len(some) == size or start + at == self._shape[0]:
                first = start + at - place - len(some)
                self._artifact.write_rows("kernel", first, self._chunk[: place + len(some)])

    def finish(self) -> None:
        """Raise ProblemError unless all rows were written."""
        if self._next != self._shape[0]:
            raise self._misplaced(f"{self._shape[0]} rows", f"{self._next} rows")

    def _misplaced(self, expected: str, got: str) -> ProblemError:
        where = f"{type(self._kernel).__name__}.write_rows, {self._where}"
        return ProblemError("blocks of a kernel are not consecutive rows", where=where, expected=expected, got=got)
