"""One tile of the train-by-train gram, by products of a panel of left blocks with right ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.gradients.factored import FactoredGradients, GramOperand
from genrep_dist.workflow.blocks import PANEL
from genrep_dist.workflow.context import to_numpy
from genrep_dist.workflow.returned import Rows

Span = tuple[int, int]
Product = Callable[[Span, Span], Tensor]


def feature_products(rows: Callable[[int, int], Rows], block: int) -> Product:
    """<Phi_i, Phi_j> of a panel with itself or with a block, from ``rows(start, stop)`` -> (rows, ..., P) or factors, a block at a time.

    It keeps the features of the latest panel, ready to be multiplied.
    """
    held: dict[Span, Tensor | GramOperand] = {}
    room: list[Tensor] = []

    def product(left: Span, right: Span) -> Tensor:
        if left not in held:
            held.clear()
            held[left] = _panel((rows(*one) for one in _blocks(left, block)), left[1] - left[0], room)
        panel = held[left]
        # The few rows on the left: BLAS is faster so.
        return _inner(panel, panel) if right == left else _inner(_ready(rows(*right)), panel).T

    return product


def _panel(parts: Iterator[Rows], num_samples: int, room: list[Tensor]) -> Tensor | GramOperand:
    """Blocks one after the other, ready to be multiplied. Dense ones lie in ``room``, memory that is used again where it is large enough,
    and no more than one of them is held beside it.
    """
    factored: list[FactoredGradients] = []
    at = 0
    for part in parts:
        if isinstance(part, FactoredGradients):
            factored.append(part)
            continue
        flat = _flat(part)
        num_rows = num_samples * (len(flat) // len(part))
        if not room or len(room[0]) < num_rows:
            room[:] = [flat.new_empty(num_rows, flat.shape[1])]
        room[0][at : at + len(flat)] = flat
        at += len(flat)
        del part, flat
    return FactoredGradients.cat(factored).as_operand() if factored else room[0][:at]


def _ready(rows: Rows) -> Tensor | GramOperand:
    return rows.as_operand() if isinstance(rows, FactoredGradients) else _flat(rows)


def _inner(left: Tensor | GramOperand, right: Tensor | GramOperand) -> Tensor:
    """All products of two blocks."""
    if isinstance(left, GramOperand):
        assert isinstance(right, GramOperand)
        return left.inner(right)
    assert isinstance(right, Tensor)
    return left @ right.T


def gram_tile(product: Product, row_range: Span, column_range: Span, block: int, panel: int = PANEL) -> npt.NDArray[np.float32]:
    """The gram of training rows ``row_range`` with ``column_range``, float32; a diagonal tile is exactly symmetric.

    ``product(left, right)`` gives the gram of two spans, one or C rows of it for each training row: of ``panel`` blocks of ``block`` rows
    with themselves or with one block.
    """
    diagonal = row_range == column_range
    tile: Tensor | None = None
    per_row = 1
    for left, right in _pairs(row_range, column_range, block, panel):
        values = product(left, right).float()
        if tile is None:
            per_row = len(values) // (left[1] - left[0])
            tile = values.new_empty((row_range[1] - row_range[0]) * per_row, (column_range[1] - column_range[0]) * per_row)
        if diagonal and left == right:
            values = torch.triu(values) + torch.triu(values, 1).T
        at = slice((left[0] - row_range[0]) * per_row, (left[1] - row_range[0]) * per_row)
        across = slice((right[0] - column_range[0]) * per_row, (right[1] - column_range[0]) * per_row)
        tile[at, across] = values
        if diagonal and right != left:
            tile[across, at] = values.T
    assert tile is not None
    return to_numpy(tile)


def reads(row_range: Span, column_range: Span, block: int) -> Iterator[Span]:
    """The blocks that :func:`feature_products` reads for a tile, in their order."""
    latest = None
    for left, right in _pairs(row_range, column_range, block, PANEL):
        if left != latest:
            yield from _blocks(left, block)
            latest = left
        if right != left:
            yield right


def _pairs(row_range: Span, column_range: Span, block: int, panel: int) -> Iterator[tuple[Span, Span]]:
    """A panel of a tile's rows with each block of its columns; in a diagonal tile with itself and with what comes after it."""
    for left in _blocks(row_range, panel * block):
        if row_range == column_range:
            yield left, left
        for right in _blocks((left[1] if row_range == column_range else column_range[0], column_range[1]), block):
            yield left, right


def _flat(features: Tensor) -> Tensor:
    """(rows, ..., P) -> (rows x outputs, P) float32."""
    return features.reshape(-1, features.shape[-1]).float()


def _blocks(span: Span, block: int) -> Iterator[Span]:
    return ((start, min(start + block, span[1])) for start in range(span[0], span[1], block))
