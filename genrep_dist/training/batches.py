"""The rows of every step, gathered many steps at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.problems.protocol import Dataset

GATHER_BYTES = 8 * 2**20
"""Inputs are copied into the order of the epoch about this much at a time: one call for many steps, and still in the cache."""


@dataclass(frozen=True)
class Batch:
    """The kept rows of one step: ``rows`` (B,) positions in the training set, ``inputs`` (B, ...), ``targets`` (B, ...)."""

    step: int
    rows: Tensor
    inputs: Tensor
    targets: Tensor


def batches(data: Dataset, order: Tensor, batch_size: int, kept: Tensor | None, first_step: int) -> Iterator[Batch]:
    """The steps of one epoch that visits the rows in ``order`` (N,), counted from ``first_step``.

    With ``kept`` (N,) bool the rows marked False drop out of their batch; a batch that loses all its rows is no step, but counts as
    one.
    """
    sizes = [batch_size] * (len(order) // batch_size) + ([len(order) % batch_size] if len(order) % batch_size else [])
    if kept is not None:
        marks = kept[order]
        order = order[marks]
        sizes = [int(size) for size in torch.stack([part.sum() for part in torch.split(marks, sizes)]).tolist()]
    row_bytes = data.inputs[:1].numel() * data.inputs.element_size()
    per_gather = max(1, GATHER_BYTES // max(1, row_bytes * batch_size))
    start = 0
    for first in range(0, len(sizes), per_gather):
        some = sizes[first : first + per_gather]
        rows = order[start : start + sum(some)]
        start += len(rows)
        gathered = zip(*(torch.split(part, some) for part in (rows, data.inputs[rows], data.targets[rows])), strict=True)
        for index, (one, inputs, targets) in enumerate(gathered):
            if len(one):
                yield Batch(first_step + first + index, one, inputs, targets)
