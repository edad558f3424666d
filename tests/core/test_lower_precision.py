"""Models that compute in fewer bits than their parameters have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one


class Lower(nn.Module):
    """Outputs of autocast, or outputs that are rounded at the end."""

    def __init__(self, dtype: torch.dtype, *, autocast: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.dtype, self.autocast = dtype, autocast

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.autocast):
            return self.layers(inputs).to(self.dtype)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_samples_one_by_one(dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Lower(dtype, autocast=autocast).eval(), torch.randn(6, 5)
    found = per_sample_gradients(model, inputs)
    expected = torch.stack([one_by_one(model, sample) for sample in inputs])
    assert found.dtype == torch.float32
    assert float((found - expected).norm()) <= (torch.finfo(dtype).eps if autocast else 1e-6) * float(expected.norm())
