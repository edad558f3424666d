"""Random projections: unbiased, within their error bound, the same in blocks of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.config.sections import ProjectionSection
from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.factored_projection import FactoredProjection
from genrep_dist.core.gradients.factored_weight import from_parameter_order
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
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


@pytest.mark.parametrize("name", EXAMPLES)
def test_projected_factors_are_the_projected_gradient_matrices(name: str) -> None:
    """Q G R^T of each weight, from its dense gradient G."""
    model, inputs = EXAMPLES[name]()
    found, projection = factored_gradients(model, inputs), FactoredProjection(12, 3)
    sizes = {parameter: math.prod(shape) for parameter, shape in found.parameters}
    dense = dict(zip(sizes, torch.split(found.to_dense(), list(sizes.values()), dim=2), strict=True))
    expected = []
    for weight in found.weights:
        gradient = dense[weight.name].reshape(*dense[weight.name].shape[:2], *weight.shape)
        matrix = gradient.transpose(2, 3) if weight.kind == "embedding" else from_parameter_order(weight, gradient)
        for axis, side, kept in zip((2, 3), ("out", "in"), projection.sides(weight), strict=True):
            if kept < matrix.shape[axis]:
                signs = projection._signs(weight, side, kept, matrix.shape[axis]).double()
                matrix = torch.tensordot(matrix, signs, dims=([axis], [1])).movedim(-1, axis)
        expected.append(matrix.flatten(2))
    projected = projection.project(found).rest
    whole = torch.cat(expected, dim=2)
    assert projected.shape[2] == projection.width(found.weights, found.rest.shape[2])
    torch.testing.assert_close(projected[:, :, : whole.shape[2]], whole)
    assert whole.shape[2] < sum(weight.numel for weight in found.weights)


@pytest.mark.parametrize("name", EXAMPLES)
def test_products_of_projected_factors_are_unbiased_and_within_the_error_bound(name: str) -> None:
    model, inputs = EXAMPLES[name]()
    found = factored_gradients(model, inputs)
    exact = inner_products(found, found)
    scale = (exact.diagonal()[:, None] * exact.diagonal()[None, :]).sqrt()
    draws = 200
    projected = [FactoredProjection(9, seed).project(found) for seed in range(draws)]
    errors = torch.stack([(inner_products(one, one) - exact) / scale for one in projected])
    deviation = FactoredProjection(9, 0).error
    assert float(errors.mean(dim=0).abs().max()) < 5 * deviation / draws**0.5
    assert 0.05 * deviation < float(errors.std(dim=0).max()) < 1.2 * deviation


def test_layers_of_at_most_as_many_numbers_are_kept_exactly() -> None:
    model, inputs = EXAMPLES["text"]()
    found = factored_gradients(model, inputs)
    projected = FactoredProjection(1000, 0).project(found)
    assert projected.rest.shape[2] == sum(math.prod(shape) for _, shape in found.parameters)
    torch.testing.assert_close(inner_products(projected, projected), inner_products(found, found))


def test_factors_in_blocks_are_projected_alike() -> None:
    for make in EXAMPLES.values():
        model, inputs = make()
        found, projection = factored_gradients(model, inputs), FactoredProjection(10, 1)
        parts = [projection.project(found.part(start, start + 2)) for start in range(0, 6, 2)]
        torch.testing.assert_close(FactoredGradients.cat(parts).rest, projection.project(found).rest)


def test_the_sizes_of_projected_factors_are_those_that_are_computed() -> None:
    for make in EXAMPLES.values():
        model, inputs = make()
        kernel = NeuralTangentKernel(ProjectionSection.model_validate({"dim": 10, "kind": "factored"}))
        sizes = kernel.sizes(model, inputs)
        assert kernel.features(model, inputs).rest.shape[2] == sizes.dimension


def test_kinds_seeds_and_parameters_draw_different_numbers() -> None:
    model, inputs = mlp(1), rows(3, 4)
    found = factored_gradients(model, inputs)
    seen = [Projection(32, kind, seed).project(found).rest for kind in KINDS for seed in (0, 1)]
    for first in range(4):
        for second in range(first):
            assert not torch.allclose(seen[first], seen[second])
    swapped = FactoredGradients(found.weights, found.factors, found.rest, found.rest_parameters[::-1], found.parameters)
    assert not torch.allclose(Projection(32, "rademacher", 0).project(swapped).rest, seen[0])
