"""Every kernel that ships runs through the conformance suite that third parties use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrep_dist.config.sections import InfluenceSection, ProjectionSection
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.model import num_parameters
from genrep_dist.core.kernels.activation_cosine import ActivationCosineKernel
from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.core.kernels.influence import InfluenceKernel
from genrep_dist.core.kernels.input_cosine import InputCosineKernel
from genrep_dist.core.kernels.last_layer import LastLayerKernel
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
from genrep_dist.core.kernels.ntk_adam import PreconditionedTangentKernel
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.testing.kernels import DerivedKernelTests, FeatureKernelTests, PairwiseKernelTests


class TestNeuralTangentKernel(FeatureKernelTests):
    def make_kernel(self) -> NeuralTangentKernel:
        return NeuralTangentKernel()


class TestNeuralTangentKernelOfAConvolutionalNetwork(TestNeuralTangentKernel):
    def make_model(self, num_outputs: int) -> nn.Module:
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, num_outputs)
        return nn.Sequential(*layers).eval()

    def inputs(self, rows: int, seed: int) -> Tensor:
        return torch.randn(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class TestProjectedNeuralTangentKernel(FeatureKernelTests):
    def make_kernel(self) -> NeuralTangentKernel:
        return NeuralTangentKernel(projection=ProjectionSection.model_validate({"dim": 256}))


class TestPreconditionedTangentKernel(FeatureKernelTests):
    def make_kernel(self) -> FeatureKernel:
        return _Metric()


class _Metric(PreconditionedTangentKernel):
    """In the metric of random numbers, whatever the model."""

    def _of(self, model: nn.Module) -> FeatureKernel:
        count = num_parameters(model)
        return PreconditionedTangentKernel().at_preconditioner(10 ** torch.randn(count, generator=torch.Generator().manual_seed(0)))

    def features(self, model: nn.Module, inputs: Tensor, outputs: Tensor | None = None) -> FactoredGradients:
        found = self._of(model).features(model, inputs, outputs)
        assert isinstance(found, FactoredGradients)
        return found

    def reference(self, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
        return self._of(model).reference(model, train, test, outputs, num_outputs)


class TestLastLayerKernel(FeatureKernelTests):
    def make_kernel(self) -> LastLayerKernel:
        return LastLayerKernel()


class TestActivationCosineKernel(FeatureKernelTests):
    def make_kernel(self) -> ActivationCosineKernel:
        return ActivationCosineKernel()


class TestInputCosineKernel(FeatureKernelTests):
    def make_kernel(self) -> InputCosineKernel:
        return InputCosineKernel()


class TestNamedLastLayerKernel(FeatureKernelTests):
    def make_kernel(self) -> LastLayerKernel:
        return LastLayerKernel(last_layer="2")


def cosine(model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
    del model
    return nn.functional.normalize(left, dim=1) @ nn.functional.normalize(right, dim=1).T


class TestUserKernel(PairwiseKernelTests):
    def make_kernel(self) -> UserKernel:
        return UserKernel(cosine)


class TestGaussNewtonInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({}))


class TestLastLayerInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({"curvature": "last-layer"}))


class TestPrimalInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({"system": "primal"}))


class TestPrimalLastLayerInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({"curvature": "last-layer", "system": "primal"}))


class TestHessianInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({"curvature": "hessian", "damping": 1.0}))


class TestLissaInfluence(DerivedKernelTests):
    def make_kernel(self) -> InfluenceKernel:
        return InfluenceKernel(InfluenceSection.model_validate({"curvature": "hessian", "solver": "lissa", "damping": 1.0}))
