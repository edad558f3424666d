"""Which rows of the training set each step visits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROW_MULTIPLE = 32
"""Rows of a slot are padded to a multiple of this. The end of a tensor that does not fill two vector registers is computed by other
instructions, with other last bits, and which rows are at the end depends on the number of slots."""


@dataclass(frozen=True)
class Step:
    """One step of S models.

    ``rows`` (S, B) positions in the training set; ``counted`` (S, B) bool, whether a row counts (None: all do); ``divisor`` the
    number of rows that count, or (S B, 1), with infinity for rows that do not; where rows have weights, the sum of the batch's weights
    divided by the row's. ``idle_slots`` the models without any row. ``counts``, where ``counted`` is given, how many rows of each model
    count.
    """

    index: int
    rows: Tensor
    counted: Tensor | None
    divisor: int | Tensor
    idle_slots: Sequence[int] = ()
    counts: Sequence[int] = ()

    def mean_gradient(self, derivative: Tensor) -> Tensor:
        """dL/df of each model's batch mean (S B, C), from dL/df of each row. Divided by infinity, a row that does not count adds zero."""
        return derivative / (self.divisor if isinstance(self.divisor, int) else self.divisor.to(derivative.dtype))

    def first_model(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The counted rows (B',) of the first model, and their part (B', C) of ``gradient`` (S B, C)."""
        rows = self.rows[0]
        if self.counted is None:
            return rows, gradient
        return rows[self.counted[0]], gradient[: len(rows)][self.counted[0]]

    def sole_rows(self) -> list[tuple[int, int]]:
        """(model, row) of each model of whose batch one row counts."""
        if self.counted is None:
            return [(0, int(self.rows[0, 0]))] if self.rows.numel() == 1 else []
        slots = [slot for slot, count in enumerate(self.counts) if count == 1]
        return [(slot, int(self.rows[slot][self.counted[slot]])) for slot in slots]


def plain_steps(order: Tensor, batch_size: int, kept: Tensor | None, first_step: int, weights: Tensor | None = None) -> Iterator[Step]:
    """The steps of one model in an epoch that visits the rows in ``order`` (N,), counted from ``first_step``.

    With ``kept`` (N,) bool the rows marked False drop out of their batch. A batch that loses all its rows is skipped, but counted.
    ``weights`` (N,) float64 of the rows in the loss, positive for those that are kept; None: all are 1.
    """
    batches = torch.split(order, batch_size)
    if kept is not None:
        marks = kept[order]
        sizes = [int(size) for size in torch.stack([part.sum() for part in torch.split(marks, batch_size)]).tolist()]
        batches = torch.split(order[marks], sizes)
    for number, rows in enumerate(batches):
        if len(rows):
            divisor = len(rows) if weights is None else (weights[rows].sum() / weights[rows]).unsqueeze(1)
            yield Step(first_step + number, rows.unsqueeze(0), None, divisor)


def padded_rows(rows: int) -> int:
    """Rows of a slot in a pack for ``rows`` rows of a batch, with padding."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def packed_steps(
    orders: Tensor, batch_size: int, kept: Tensor, first_step: int, weights: Tensor | None = None, *, shared: bool = False
) -> Iterator[Step]:
    """The steps of S models in an epoch that visits the rows in ``orders`` (S, N), each without the rows that ``kept`` (S, N) drops.

    Shapes do not depend on what is dropped: a row that the model keeps stands in for a dropped one, and for padding, and does not
    count. No number of a dropped row is ever read. ``weights`` (S, N) as in :func:`plain_steps`.

    ``shared``: the orders are equal, and all models read the same rows. A dropped row stays in its place and does not count; the first
    row of the batch is the padding.
    """
    num_rows = orders.shape[1]
    marks = kept.gather(1, orders)
    stand_in = kept.to(torch.uint8).argmax(dim=1, keepdim=True)
    rows = orders if shared else torch.where(marks, orders, stand_in)
    step = first_step
    for start, stop in ((0, num_rows // batch_size * batch_size), (num_rows // batch_size * batch_size, num_rows)):
        size = min(batch_size, stop - start)
        if not size:
            continue
        padding = padded_rows(size) - size
        some_rows, some_marks = (
            part[:, start:stop].reshape(len(orders), -1, size).transpose(0, 1) for part in (rows, marks)
        )  # (steps, S, B)
        sizes = some_marks.sum(dim=2, keepdim=True)
        filling = some_rows[:, :, :1] if shared else stand_in
        some_rows = torch.cat([some_rows, filling.expand(len(sizes), -1, padding)], dim=2)
        some_marks = torch.cat([some_marks, some_marks.new_zeros(1).expand(*sizes.shape[:2], padding)], dim=2)
        if weights is None:
            divisors = torch.where(some_marks, sizes.to(torch.float32), torch.inf)
        else:
            divisors = _divisors(weights, some_rows, some_marks)
        divisors = divisors.flatten(1).unsqueeze(2)
        for number, counts in enumerate(sizes.squeeze(2).tolist()):
            idle = [slot for slot, count in enumerate(counts) if count == 0]
            yield Step(step, some_rows[number], some_marks[number], divisors[number], idle, counts)
            step += 1


def _divisors(weights: Tensor, rows: Tensor, marks: Tensor) -> Tensor:
    """The divisors (steps, S, B) of ``rows`` (steps, S, B) with ``weights`` (S, N), where ``marks`` says which count."""
    found = []
    for own, its_rows, its_marks in zip(weights, rows.unbind(1), marks.unbind(1), strict=True):
        # Slot by slot, as the last bits of a sum may depend on the layout of all.
        counted = torch.where(its_marks, own[its_rows], 0.0)
        found.append(torch.where(its_marks, counted.sum(dim=1, keepdim=True) / counted, torch.inf))
    return torch.stack(found, dim=1)
