"""What explains, on a GPU: features, kernels, projections and systems against float64 on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, inner_products
from genrep_dist.core.gradients.factored_projection import FactoredProjection
from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.per_sample import factored_gradients, per_sample_gradients
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.core.kernels.blocks import last_layer_block
from genrep_dist.core.kernels.ntk import NeuralTangentKernel
from genrep_dist.core.losses import get_loss
from genrep_dist.core.solvers.gauss_newton import influence_kernel
from genrep_dist.core.solvers.primal_system import PrimalSystem
from genrep_dist.problems.datasets.image_models import SmallCNN
from tests.gpu.examples import EXAMPLES, Gated

ROWS = 12
MODELS = {name: example.factory for name, example in EXAMPLES.items()} | {
    "three outputs": lambda: SmallCNN(3),
    "attention, two outputs": lambda: Gated(2),
}


def a_model(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(4)
    example = EXAMPLES.get(name, EXAMPLES["cnn"])
    return MODELS[name]().eval(), example.data(torch.device("cpu"), ROWS).inputs


def reference(model: nn.Module, inputs: Tensor) -> Tensor:
    """Jacobians (B, C, P) in float64 on the CPU, one backward pass each."""
    exact = copy.deepcopy(model).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    num_outputs = exact(inputs[:1]).shape[1]
    return torch.stack([torch.stack([one_by_one(exact, sample, output) for output in range(num_outputs)]) for sample in inputs])


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert found.device.type == "cpu" or found.is_cuda
    difference = (found.detach().double().cpu() - expected).abs().max()
    assert float(difference) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_factors_and_their_products(name: str, device: torch.device) -> None:
    model, inputs = a_model(name)
    expected = reference(model, inputs)
    model, there = model.to(device), inputs.to(device)
    dense = per_sample_gradients(model, there)
    assert dense.device.type == device.type
    close(dense, expected)
    factors = factored_gradients(model, there)
    close(factors.to_dense(), expected)
    rows = expected.flatten(0, 1)
    close(inner_products(factors, factors), rows @ rows.T)
    own = torch.zeros(ROWS, dtype=torch.int64, device=device)
    close(factors.self_product(own), torch.einsum("bcp,bp->bc", expected, expected[:, 0]))
    weights = torch.rand(ROWS, expected.shape[1], generator=torch.Generator().manual_seed(1))
    close(per_sample_gradients(model, there, weights.to(device)), torch.einsum("bcp,bc->bp", expected, weights.double()))


@pytest.mark.parametrize("name", ["cnn", "text", "three outputs"])
def test_blocks_of_kernels_and_tiles_of_a_gram(name: str, device: torch.device) -> None:
    model, inputs = a_model(name)
    expected = reference(model, inputs)
    num_outputs = expected.shape[1]
    model, there, outputs = model.to(device), inputs.to(device), torch.arange(4) % num_outputs
    kernel = NeuralTangentKernel()
    test = kernel.features(model, there[:4], outputs.to(device)).as_operand()
    block = kernel.block(kernel.features(model, there), test, outputs.to(device), num_outputs)
    close(block, torch.einsum("bcp,mp->bcm", expected, expected[torch.arange(4), outputs]))
    rows = expected.flatten(0, 1)
    first, second = kernel.features(model, there[:7]), kernel.features(model, there[7:])
    close(first.as_operand().inner(second), rows[: 7 * num_outputs] @ rows[7 * num_outputs :].T)
    exact = last_layer_features(copy.deepcopy(model).double().cpu(), inputs.double() if inputs.is_floating_point() else inputs)
    expected_block = last_layer_block(exact, exact[:4], outputs, num_outputs)
    features = last_layer_features(model, there)
    close(last_layer_block(features, features[:4], outputs.to(device), num_outputs), expected_block)


@pytest.mark.parametrize("projection", [Projection(64, "rademacher", 1), Projection(64, "sparse", 1), FactoredProjection(64, 1)])
@pytest.mark.parametrize("name", ["cnn", "text"])
def test_projections_are_those_of_the_cpu(name: str, projection: Projection | FactoredProjection, device: torch.device) -> None:
    model, inputs = a_model(name)
    expected = projection.project(factored_gradients(copy.deepcopy(model).double(), inputs.double() if name == "cnn" else inputs))
    found: FactoredGradients = projection.project(factored_gradients(model.to(device), inputs.to(device)))
    assert found.rest.device.type == device.type
    close(found.rest, expected.rest)


def test_systems_from_features_of_the_device(device: torch.device) -> None:
    """Dual and primal influence from features that a GPU computed, against the explicit inverse in float64."""
    torch.manual_seed(4)
    model, loss = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval(), get_loss("softmax")
    inputs, targets = torch.randn(ROWS, 6), torch.arange(ROWS) % 3
    jacobian = reference(model, inputs)
    curvature = loss.second_derivative(model.double()(inputs.double()).detach(), targets)
    width, test = jacobian.shape[2], jacobian[torch.arange(3), torch.arange(3)]
    newton = torch.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / ROWS + 0.05 * torch.eye(width, dtype=torch.float64)
    expected = torch.einsum("ncp,pm->ncm", jacobian, torch.linalg.solve(newton, test.T))
    model = model.float().to(device)
    features = per_sample_gradients(model, inputs.to(device)).cpu()
    chosen = features[torch.arange(3), torch.arange(3)]
    system = PrimalSystem(lambda: [features[:5], features[5:]], curvature, width, damping=0.05, relative=False, num_parameters=width)
    close(system.kernel(chosen.double().T)[0], expected, 1e-4)
    rows = features.flatten(0, 1).double()
    cross = (rows @ chosen.double().T).reshape(ROWS, 3, 3)
    dual, _ = influence_kernel(rows @ rows.T, cross, curvature, damping=0.05, relative=False, num_parameters=width)
    close(dual, expected, 1e-4)
