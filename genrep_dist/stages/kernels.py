"""Stage kernels: blocks of K(train, test) and tiles of the train-by-train gram, from stored or streamed features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.plan import GramUnit, KernelUnit
from genrep_dist.representers.kernels import last_layer_block, ntk_block
from genrep_dist.stages.job import Workbench, to_numpy

FeatureRows = Callable[[int, int], Tensor]


def run_kernel(unit: KernelUnit, bench: Workbench) -> dict[str, float]:
    """K of one block of training rows with all test points of the seed: (rows, C, M)."""
    rows = _feature_rows(unit, bench)(unit.start, unit.stop)
    test = bench.test_features(unit.seed, unit.kernel, unit.epoch)
    if unit.kernel == "last-layer":
        num_outputs = bench.train_artifact(unit.seed).read("outputs_test").shape[1]
        block = last_layer_block(rows, test, bench.target_outputs(unit.seed), num_outputs)
    else:
        block = ntk_block(rows, test)
    artifact = bench.store.artifact("kernel", bench.keys.kernel(unit.seed, unit.kernel, unit.epoch))
    artifact.write_part(unit.part, "kernel", (unit.start, 0, 0), to_numpy(block.float()))
    return {"rows": float(unit.stop - unit.start)}


def run_gram(unit: GramUnit, bench: Workbench) -> dict[str, float]:
    """One tile of the gram: products of blocks of features, with two blocks and the tile in memory."""
    rows = _feature_rows(unit, bench)
    num_train = len(bench.train.ids)
    tile = gram_tile(
        rows,
        (unit.row * unit.tile, min((unit.row + 1) * unit.tile, num_train)),
        (unit.column * unit.tile, min((unit.column + 1) * unit.tile, num_train)),
        unit.block,
    )
    artifact = bench.store.artifact("gram", bench.keys.gram(unit.seed, unit.kernel, unit.epoch))
    # The grid counts rows of the gram, C of them for each training row where the kernel is matrix-valued.
    edge = artifact.declared_chunks("gram")
    artifact.write_part(unit.part, "gram", (unit.row * edge[0], unit.column * edge[1]), tile)
    return {"numbers": float(tile.size)}


def gram_tile(rows: FeatureRows, row_range: tuple[int, int], column_range: tuple[int, int], block: int) -> npt.NDArray[np.float32]:
    """<Phi_i, Phi_j> for i in ``row_range`` and j in ``column_range``, float32; a diagonal tile is exactly symmetric.

    ``rows(start, stop)`` gives features (rows, ...); at most two blocks of ``block`` rows are held at once beside the tile.
    """
    diagonal = row_range == column_range
    tile: Tensor | None = None
    per_row = 1
    for start, stop in _blocks(row_range, block):
        left = _flat(rows(start, stop))
        per_row = len(left) // (stop - start)
        if tile is None:
            tile = left.new_empty((row_range[1] - row_range[0]) * per_row, (column_range[1] - column_range[0]) * per_row)
        at = slice((start - row_range[0]) * per_row, (stop - row_range[0]) * per_row)
        for other_start, other_stop in _blocks(column_range, block):
            if diagonal and other_start < start:
                continue
            right = left if (diagonal and other_start == start) else _flat(rows(other_start, other_stop))
            across = slice((other_start - column_range[0]) * per_row, (other_stop - column_range[0]) * per_row)
            product = left @ right.T
            if diagonal and other_start == start:
                product = torch.triu(product) + torch.triu(product, 1).T
            tile[at, across] = product
            if diagonal and other_start > start:
                tile[across, at] = product.T
    assert tile is not None
    return to_numpy(tile)


def _flat(features: Tensor) -> Tensor:
    """(rows, ..., P) -> (rows x outputs, P) float32."""
    return features.reshape(-1, features.shape[-1]).float()


def _blocks(span: tuple[int, int], block: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + block, span[1])) for start in range(span[0], span[1], block))


def _feature_rows(unit: KernelUnit | GramUnit, bench: Workbench) -> FeatureRows:
    if not unit.stored:
        return lambda start, stop: bench.features(unit.seed, unit.kernel, unit.epoch, start, stop)
    reader = bench.store.artifact("features", bench.keys.features(unit.seed, unit.kernel, unit.epoch)).reader("features")
    return lambda start, stop: torch.from_numpy(reader.read(slice(start, stop))).to(bench.device)
