"""DataInf against a loop over samples with an explicit inverse for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.config.sections import InfluenceSection
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.kernels.datainf import DataInfKernel
from genrep_dist.testing.kernels import DenseInputs, DerivedKernelTests

NUM_TRAIN, NUM_TEST, DAMPING = 9, 3, 0.05


def kernel(unit: str) -> DataInfKernel:
    return DataInfKernel(InfluenceSection.model_validate({"damping": DAMPING, "damping_unit": unit}))


class TestDataInf(DerivedKernelTests):
    def make_kernel(self) -> DataInfKernel:
        return kernel("mean-eigenvalue")


def reference(inputs: DenseInputs, unit: str) -> Tensor:
    """K (N, C, M), with a matrix inverted for each sample and layer."""
    model = inputs.model()
    jacobians = torch.stack([one_by_one(model, sample) for sample in inputs.train_inputs])
    weights = inputs.loss.derivative(inputs.outputs(), inputs.targets)
    gradients = torch.einsum("nc,ncp->np", weights, jacobians)
    test, start = inputs.test_gradients(), 0
    result = torch.zeros(len(jacobians), jacobians.shape[1], len(test), dtype=torch.float64)
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        part = slice(start, start + sum(parameter.numel() for parameter in layer.parameters()))
        start = part.stop
        own = gradients[:, part]
        delta = DAMPING * (float(own.square().mean()) if unit == "mean-eigenvalue" else 1.0)
        inverse = sum(torch.linalg.inv(torch.outer(g, g) + delta * torch.eye(len(g), dtype=torch.float64)) for g in own) / len(own)
        result += jacobians[:, :, part] @ (inverse @ test[:, part].T)
    return result


@pytest.mark.parametrize("unit", ["absolute", "mean-eigenvalue"])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_it_is_the_mean_of_the_inverses(num_outputs: int, unit: str) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, num_outputs)).eval()
    train, test = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (NUM_TRAIN, NUM_TEST))
    inputs = DenseInputs(model, train, test, torch.arange(NUM_TEST) % num_outputs)
    block, certificate = kernel(unit).columns(inputs)
    expected = reference(inputs, unit)
    torch.testing.assert_close(block, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))
    assert certificate["smallest_damping"] <= certificate["damping"]
