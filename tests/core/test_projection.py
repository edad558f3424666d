"""Random projections: unbiased, within their error bound, the same in blocks of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.gradients.projection import Projection
from tests.core.models import cnn, initialise, mlp, rows

Kind = Literal["rademacher", "sparse"]
KINDS: list[Kind] = ["rademacher", "sparse"]


def text() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(nn.Embedding(30, 5, padding_idx=0), nn.Flatten(), nn.Linear(40, 12), nn.ReLU(), nn.Linear(12, 2))
    return initialise(model, 0), torch.randint(0, 30, (6, 8), generator=torch.Generator().manual_seed(0))


EXAMPLES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (mlp(2, width=9), rows(6, 4)),
    "cnn": lambda: (cnn(2), rows(6, 2, 6, 6)),
    "text": text,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_products_are_unbiased_and_within_the_error_bound(name: str, kind: Kind) -> None:
    model, inputs = EXAMPLES[name]()
    found = factored_gradients(model, inputs)
    exact = inner_products(found, found)
    scale = (exact.diagonal()[:, None] * exact.diagonal()[None, :]).sqrt()
    errors = []
    for seed in range(60):
        projection = Projection(64, kind, seed)
        projected = projection.project(found)
        assert projected.rest.shape == (6, 2, 64)
        errors.append((inner_products(projected, projected) - exact) / scale)
    stacked = torch.stack(errors)
    deviation = Projection(64, kind, 0).error
    assert float(stacked.abs().max()) < 6 * deviation
    assert float(stacked.mean(dim=0).abs().max()) < 5 * deviation / 60**0.5
    # The bound is tight: it is reached for x = z.
    assert 0.3 * deviation < float(stacked.std(dim=0).max()) < 1.6 * deviation


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(list(EXAMPLES)), st.sampled_from(KINDS), st.integers(1, 6), st.integers(1, 70), st.integers(0, 9))
def test_blocks_of_any_size_are_projected_alike(name: str, kind: Kind, size: int, dim: int, seed: int) -> None:
    model, inputs = EXAMPLES[name]()
    found, projection = factored_gradients(model, inputs), Projection(dim, kind, seed)
    whole = projection.project(found)
    parts = [projection.project(found.part(start, min(start + size, 6))) for start in range(0, 6, size)]
    torch.testing.assert_close(FactoredGradients.cat(parts).rest, whole.rest, rtol=1e-10, atol=1e-10)


def test_kinds_seeds_and_parameters_draw_different_numbers() -> None:
    model, inputs = mlp(1), rows(3, 4)
    found = factored_gradients(model, inputs)
    seen = [Projection(32, kind, seed).project(found).rest for kind in KINDS for seed in (0, 1)]
    for first in range(4):
        for second in range(first):
            assert not torch.allclose(seen[first], seen[second])
    swapped = FactoredGradients(found.weights, found.factors, found.rest, found.rest_parameters[::-1], found.parameters)
    assert not torch.allclose(Projection(32, "rademacher", 0).project(swapped).rest, seen[0])
