from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.base import ArraySpec
from genrep_dist.workflow.blocks import PANEL
from genrep_dist.workflow.gram import Gram
from genrep_dist.workflow.gram_tiles import feature_products, gram_tile, reads
from genrep_dist.workflow.prefetch import Prefetcher


def rows_of(features: Tensor) -> Callable[[int, int], Tensor]:
    return lambda start, stop: features[start:stop]


def flat(features: Tensor) -> Tensor:
    return features.reshape(-1, features.shape[-1])


def build_gram(store: Store, features: Tensor, tile: int, block: int) -> Artifact:
    """A committed gram of all tiles (i, j) with i <= j, as the stage writes it."""
    n = len(features)
    per_row = features[0].numel() // features.shape[-1]
    spec = ArraySpec("gram", (n * per_row, n * per_row), (tile * per_row, tile * per_row), ("row", "column"))
    artifact = store.artifact("gram", "ab" * 32)
    artifact.create(spec.name, spec.shape, spec.chunks, "float32", spec.dimension_names)
    for i in range(0, n, tile):
        for j in range(i, n, tile):
            values = gram_tile(feature_products(rows_of(features), block), (i, min(i + tile, n)), (j, min(j + tile, n)), block)
            artifact.write_part(f"{i}-{j}", "gram", (i * per_row, j * per_row), values)
    artifact.commit({})
    return artifact


@given(
    n=st.integers(1, 17),
    outputs=st.sampled_from([None, 1, 3]),
    tile=st.integers(1, 20),
    block=st.integers(1, 20),
    panel=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_tiling_is_the_dense_product(n: int, outputs: int | None, tile: int, block: int, panel: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 7) if outputs is None else (n, outputs, 7)
    features = torch.randn(*shape, generator=generator)
    dense = (flat(features).double() @ flat(features).double().T).numpy()
    per_row = outputs or 1
    for i in range(0, n, tile):
        for j in range(i, n, tile):
            span, across = (i, min(i + tile, n)), (j, min(j + tile, n))
            values = gram_tile(feature_products(rows_of(features), block), span, across, block, panel)
            window = dense[span[0] * per_row : span[1] * per_row, across[0] * per_row : across[1] * per_row]
            np.testing.assert_allclose(values, window, rtol=1e-4, atol=1e-4)
            if i == j:
                np.testing.assert_array_equal(values, values.T)


@given(rows=st.integers(1, 30), columns=st.integers(1, 30), diagonal=st.booleans(), block=st.integers(1, 9))
def test_what_a_tile_reads_is_known_beforehand(rows: int, columns: int, diagonal: bool, block: int) -> None:
    features = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return features[start:stop]

    across = (0, rows) if diagonal else (40, 40 + columns)
    with Prefetcher(read) as reader:
        gram_tile(feature_products(reader, block), (0, rows), across, block)
    assert asked == list(reads((0, rows), across, block))
    # A panel at a time: each right block is read once for every PANEL left ones; in a diagonal tile only those that come after the panel.
    lefts, rights = -(-rows // block), -(-(rows if diagonal else columns) // block)
    panels = [min(start + PANEL, lefts) for start in range(0, lefts, PANEL)]
    assert len(asked) == lefts + sum(rights - stop if diagonal else rights for stop in panels)


def test_a_tile_reads_one_block_at_a_time() -> None:
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def rows(start: int, stop: int) -> Tensor:
        asked.append(stop - start)
        return features[start:stop]

    gram_tile(feature_products(rows, 8), (0, 40), (0, 40), 8)
    assert max(asked) == 8


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize(("tile", "block"), [(4, 2), (5, 5), (16, 7), (23, 23)])
@pytest.mark.parametrize("budget", [1, 10**9])
def test_the_stored_gram_multiplies_like_the_dense_one(tmp_path: Path, outputs: int | None, tile: int, block: int, budget: int) -> None:
    """Budget 1 byte: tile by tile from disk. A large one: the dense matrix in memory. Only the upper half is stored either way."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(23, 6, generator=generator) if outputs is None else torch.randn(23, outputs, 6, generator=generator)
    gram = Gram(build_gram(Store(str(tmp_path)), features, tile, block), budget, len(features))
    dense = flat(features) @ flat(features).T
    np.testing.assert_allclose(gram.dense(), dense.numpy(), rtol=1e-5, atol=1e-5)
    alpha = torch.randn(23, 3, generator=generator, dtype=torch.float64)
    # A scalar kernel serves each output alike; a matrix-valued one mixes them.
    expected = dense.double() @ alpha if outputs is None else (dense.double() @ alpha.reshape(-1)).reshape(23, 3)
    torch.testing.assert_close(gram.matvec(alpha), expected, rtol=1e-5, atol=1e-5)
    rows = torch.tensor([3, 17, 4])
    batch = torch.zeros_like(alpha)
    batch[rows] = alpha[rows]
    torch.testing.assert_close(gram.columns(rows, alpha[rows]), gram.matvec(batch), rtol=1e-9, atol=1e-9)
    entries = torch.tensor([0, 5, 6, 7, 40, 68])
    units = torch.zeros(6, 69, dtype=torch.float64)
    units[torch.arange(6), entries] = 1
    expected = torch.stack([gram.matvec(unit.reshape(23, 3)).reshape(-1) for unit in units], dim=1)
    torch.testing.assert_close(gram.sample(entries, 3), expected, rtol=1e-12, atol=1e-12)


def test_the_lower_half_is_never_written(tmp_path: Path) -> None:
    artifact = build_gram(Store(str(tmp_path)), torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 3, 2)
    stored = artifact.read("gram")
    assert np.isnan(stored[6:, :3]).all()
    assert np.isfinite(stored[:3, 6:]).all()
