"""RelatIF against a loop over samples with the explicit Gauss-Newton matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.config.sections import InfluenceSection
from genrep_dist.core.kernels.influence import InfluenceKernel
from genrep_dist.core.kernels.relatif import RelatifKernel
from genrep_dist.errors import MethodError
from genrep_dist.testing.kernels import DenseInputs, DerivedKernelTests

NUM_TRAIN, NUM_TEST, DAMPING = 9, 3, 0.05


def section(**fields: Any) -> InfluenceSection:
    return InfluenceSection.model_validate({"damping": DAMPING, "damping_unit": "absolute", **fields})


def given(num_outputs: int) -> DenseInputs:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, num_outputs)).eval()
    train, test = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (NUM_TRAIN, NUM_TEST))
    return DenseInputs(model, train, test, torch.arange(NUM_TEST) % num_outputs)


def divisors(inputs: DenseInputs) -> Tensor:
    """The root of each sample's influence on its own loss (N,)."""
    jacobians = inputs.train_features("ntk", 0, NUM_TRAIN)
    weights = inputs.loss.derivative(inputs.outputs(), inputs.targets)
    curvature = inputs.loss.second_derivative(inputs.outputs(), inputs.targets)
    hessian = sum(j.T @ h @ j for j, h in zip(jacobians, curvature, strict=True)) / NUM_TRAIN
    inverse = torch.linalg.inv(hessian + DAMPING * torch.eye(len(hessian), dtype=torch.float64))
    gradients = [w @ j for w, j in zip(weights, jacobians, strict=True)]
    return torch.stack([(g @ inverse @ g).sqrt() for g in gradients])


class RelatifTests(DerivedKernelTests):
    __test__ = False

    @pytest.mark.parametrize("num_outputs", [1, 3])
    def test_a_kernel_of_the_training_set_with_itself_is_symmetric_and_positive(self, num_outputs: int) -> None:
        """It is not: it is the influence kernel with its rows divided."""
        inputs, kernel = given(num_outputs), self.make_kernel()
        plain, _ = InfluenceKernel(kernel.options).columns(inputs)
        expected = plain / divisors(inputs)[:, None, None]
        torch.testing.assert_close(kernel.columns(inputs)[0], expected, rtol=1e-7, atol=1e-9)

    def make_kernel(self) -> RelatifKernel:
        raise NotImplementedError


class TestDualRelatif(RelatifTests):
    __test__ = True

    def make_kernel(self) -> RelatifKernel:
        return RelatifKernel(section(system="dual"))


class TestPrimalRelatif(RelatifTests):
    __test__ = True

    def make_kernel(self) -> RelatifKernel:
        return RelatifKernel(section(system="primal"))


def test_a_sample_without_a_loss_gradient_has_no_influence() -> None:
    inputs = given(1)
    inputs.targets = inputs.targets.clone()
    inputs.targets[2] = torch.sigmoid(inputs.outputs()[2, 0])
    block, _ = RelatifKernel(section()).columns(inputs)
    assert torch.isfinite(block).all()
    assert not block[2].any()
    assert block[1].any()


def test_the_true_hessian_is_refused() -> None:
    with pytest.raises(MethodError, match=r"a system with the true Hessian for each training sample[\s\S]*choose influence.curvature: ggn"):
        _ = RelatifKernel(section(curvature="hessian")).base
