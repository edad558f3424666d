"""Models that compute in bfloat16 or float16 inside their forward pass: their rounding is told, and is not taken for a fault."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.diagnostics.float64 import all_in_float64
from tests.diagnostics.runs import Learnable, SubtractBatchMean, doctor, run

HERE = "tests.diagnostics.test_model_precision"


class Autocast(nn.Sequential):
    """All in bfloat16, the outputs too."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            result: Tensor = super().forward(inputs)  # type: ignore[no-untyped-call]
            return result


class Mixed(nn.Module):
    """The first layer under autocast, the normalisation and the last layer in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 16), nn.GroupNorm(4, 16), nn.Linear(16, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = torch.relu(self.first(inputs))
        return self.last(self.norm(hidden.float()))  # type: ignore[no-any-return]


class Cast(nn.Module):
    """Casts by methods, functions and dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 1)
        self.frozen = nn.Linear(16, 16).bfloat16().requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.first.weight.half(), self.first.bias.to(dtype=torch.float16)
        hidden = torch.tanh(nn.functional.linear(inputs.to(torch.float16), weight, bias))
        noise = torch.zeros(16, dtype=torch.bfloat16)
        return self.last(torch.relu(self.frozen(hidden.bfloat16() + noise)).float())  # type: ignore[no-any-return]


class Looking(Autocast):
    """Under autocast, and with outputs that depend on the batch."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 8), SubtractBatchMean(), nn.Linear(8, 1))


class AutocastRows(Learnable):
    def model(self) -> nn.Module:
        return Autocast(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))


class MixedRows(Learnable):
    def model(self) -> nn.Module:
        return Mixed()


class CastRows(Learnable):
    def model(self) -> nn.Module:
        return Cast()


class LookingRows(Learnable):
    def model(self) -> nn.Module:
        return Looking()


METHODS = ["ntk-final/tracking", "ntk-final/surrogate", "last-layer-final/target", "random"]


@pytest.mark.parametrize("problem", ["AutocastRows", "MixedRows", "CastRows"])
def test_rounding_of_the_forward_pass_is_no_fault(problem: str, tmp_path: Path) -> None:
    findings = doctor(run(tmp_path, f"{HERE}:{problem}", methods=METHODS))
    assert [found for found in findings if found.colour == "red"] == []


def test_a_fault_beside_rounding_is_found(tmp_path: Path) -> None:
    findings = doctor(run(tmp_path, f"{HERE}:LookingRows", methods=METHODS[:1]))
    assert ("batch size", "red") in findings.not_green()


def test_what_is_cast_and_made_in_float64() -> None:
    wide = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with all_in_float64():
        made = [
            wide.float(),
            wide.half(),
            wide.to(torch.bfloat16),
            wide.type(torch.float32),
            torch.zeros(2),
            torch.ones(2, dtype=torch.half),
        ]
        assert {tensor.dtype for tensor in made} == {torch.float64}
        assert torch.zeros(2, dtype=torch.int32).dtype == torch.int32
        assert wide.to(torch.complex64).dtype == torch.complex128
        (gradient,) = torch.autograd.grad(wide.bfloat16().square().sum(), wide)
    assert torch.equal(gradient, 2 * wide.detach())
    assert torch.zeros(1).dtype == torch.float32
