"""Stage kernels: blocks of K(train, test) and tiles of the train-by-train gram, from stored or streamed features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.gradients.factored import FactoredGradients, GramOperand
from genrep_dist.core.kernels.blocks import last_layer_block, per_output
from genrep_dist.plan import PANEL
from genrep_dist.store.features import RowsReader
from genrep_dist.units import GramUnit, KernelUnit
from genrep_dist.workflow.context import Workbench, to_numpy
from genrep_dist.workflow.prefetch import Ahead

Rows = Tensor | FactoredGradients
Span = tuple[int, int]
Product = Callable[[Span, Span], Tensor]


def run_kernel(unit: KernelUnit, bench: Workbench) -> dict[str, float]:
    """K of one block of training rows with all test points of the seed: (rows, C, M)."""
    block = kernel_block(unit, bench)
    artifact = bench.store.artifact("kernel", bench.keys.kernel(unit.seed, unit.kernel, unit.epoch))
    artifact.write_part(unit.part, "kernel", (unit.start, 0, 0), to_numpy(block.float()), seconds=bench.elapsed())
    return {"rows": float(unit.stop - unit.start)}


def kernel_block(unit: KernelUnit, bench: Workbench) -> Tensor:
    """K (rows, C, M) of the unit's training rows with the seed's test points."""
    num_outputs = bench.train_artifact(unit.seed).read("outputs_test").shape[1]
    if unit.kernel in bench.own_kernels:
        positions = bench.test_positions(unit.seed)
        scalar = bench.own_kernel_block(unit, bench.train.inputs[unit.start : unit.stop], bench.test.inputs[positions])
        return per_output(scalar, bench.target_outputs(unit.seed), num_outputs)
    return _feature_block(unit, bench, num_outputs)


def _feature_block(unit: KernelUnit, bench: Workbench, num_outputs: int) -> Tensor:
    """K (rows, C, M) from features."""
    rows = _feature_rows(unit, bench)
    if unit.kernel == "last-layer":
        train, test = rows(unit.start, unit.stop), bench.test_features(unit.seed, unit.kernel, unit.epoch)
        assert isinstance(train, Tensor)
        return last_layer_block(train.float(), test.float(), bench.target_outputs(unit.seed), num_outputs)
    # The few test points are ready and kept; the training rows pass by, so that no more than a few of them are ever held. Stored or
    # streamed, they pass in the same steps, and give the same bits.
    points = bench.test_rows(unit.seed, unit.epoch)
    num_rows = unit.stop - unit.start
    step = num_rows if unit.stored else bench.rows_of_a_pass(unit.seed, unit.epoch)
    columns = []
    for start in range(unit.start, unit.stop, step):
        some = rows(start, min(start + step, unit.stop))
        assert isinstance(some, FactoredGradients)
        passing = bench.rows_of_a_pass(unit.seed, unit.epoch)
        columns += [points.inner(some.part(at, min(at + passing, len(some)))) for at in range(0, len(some), passing)]
    return torch.cat(columns, dim=1).T.reshape(num_rows, num_outputs, -1)


def run_gram(unit: GramUnit, bench: Workbench) -> dict[str, float]:
    """One tile of the gram, by products of a panel of left blocks with right ones. Memory: the tile, and :meth:`Shape.block_numbers`.

    Stored features are read by a thread while the block before them is multiplied.
    """
    num_train = len(bench.train.ids)
    artifact = bench.store.artifact("gram", bench.keys.gram(unit.seed, unit.kernel, unit.epoch))
    # The grid counts rows of the gram, C of them for each training row where the kernel is matrix-valued.
    edge = artifact.declared_chunks("gram")
    spans, across = ((at * unit.tile, min((at + 1) * unit.tile, num_train)) for at in (unit.row, unit.column))
    if unit.kernel in bench.own_kernels:
        # Of a kernel of one's own nobody knows what memory it takes for more than a block.
        own: Product = lambda left, right: bench.own_kernel_block(  # noqa: E731
            unit, bench.train.inputs[slice(*left)], bench.train.inputs[slice(*right)]
        )
        tile = gram_tile(own, spans, across, unit.block, panel=1)
    else:
        # Gradients that are computed have no disk to wait for.
        with Ahead(_feature_rows(unit, bench), reads(spans, across, unit.block) if unit.stored else ()) as ahead:
            tile = gram_tile(feature_products(ahead, unit.block), spans, across, unit.block)
    artifact.write_part(unit.part, "gram", (unit.row * edge[0], unit.column * edge[1]), tile, seconds=bench.elapsed())
    return {"numbers": float(tile.size)}


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


def _feature_rows(unit: KernelUnit | GramUnit, bench: Workbench) -> Callable[[int, int], Rows]:
    """Features of training rows by their span: read where they are stored, else computed."""
    if not unit.stored:
        if unit.kernel == "ntk":
            return lambda start, stop: bench.feature_rows(unit.seed, unit.epoch, start, stop)
        return lambda start, stop: bench.features(unit.seed, unit.kernel, unit.epoch, start, stop)
    artifact = bench.store.artifact("features", bench.keys.features(unit.seed, unit.kernel, unit.epoch))
    if unit.kernel == "ntk":
        stored = RowsReader(artifact)
        return lambda start, stop: stored.read(start, stop).to(torch.float32, bench.device)
    reader = artifact.reader("features")
    return lambda start, stop: torch.from_numpy(reader.read(slice(start, stop))).to(bench.device)
