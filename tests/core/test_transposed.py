"""A linear layer that keeps its weight as (I, O), as Conv1D of transformers does: factored, stored and multiplied as any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.inspection import inspect_model
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.store.feature_codec import pack, unpack
from tests.core.models import initialise, seeded


class Conv1D(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


class Mean(nn.Module):
    """Two such layers on T vectors, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv1D(4, 6), Conv1D(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(inputs))).mean(1)
        return out


@pytest.mark.parametrize("positions", [1, 2, 9])
def test_features_are_those_of_one_backward_pass(positions: int) -> None:
    model = initialise(Mean(), 0)
    inputs = torch.randn(5, positions, 4, generator=seeded(1), dtype=torch.float64)
    expected = torch.stack([one_by_one(model, row) for row in inputs])
    rows = factored_gradients(model, inputs)
    assert {weight.name for weight in rows.weights} == {"first.weight", "second.weight"}
    assert {one.strategy for one in inspect_model(model, inputs).strategies} == {"factored", "dense"}
    torch.testing.assert_close(rows.to_dense(), expected)
    gram = expected.flatten(0, 1) @ expected.flatten(0, 1).T
    torch.testing.assert_close(inner_products(rows, rows), gram)
    read = unpack(pack(rows.to(torch.float32)))
    assert isinstance(read, FactoredGradients)
    assert read.weights == rows.weights
    torch.testing.assert_close(read.to_dense(), expected.float(), rtol=1e-4, atol=1e-5)
    projected = Projection(512, "rademacher", 0).project(rows.to(torch.float32)).to_dense().flatten(0, 1)
    assert float((projected @ projected.T - gram.float()).abs().max()) < 0.4 * float(gram.abs().max())
