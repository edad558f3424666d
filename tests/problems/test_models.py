from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from genrep_dist.core.gradients.model import check_model, model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.errors import ProblemError
from genrep_dist.problems.datasets.image_models import SmallCNN, VisionCNN


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build(model_class: type[nn.Module], *arguments: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return model_class(*arguments).eval()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (SmallCNN(1), 4_929),
        (SmallCNN(10), 6_090),
        (VisionCNN(1, 28, 1), 93_825),
        (VisionCNN(3, 32, 1), 95_297),
    ],
)
def test_number_of_parameters(model: nn.Module, expected: int) -> None:
    assert count(model) == expected


@pytest.mark.parametrize(
    ("model", "shape", "num_outputs"),
    [
        (SmallCNN(1), (1, 8, 8), 1),
        (SmallCNN(10), (1, 8, 8), 10),
        (VisionCNN(1, 28, 1), (1, 28, 28), 1),
        (VisionCNN(3, 32, 2), (3, 32, 32), 2),
        (VisionCNN(1, 13, 1), (1, 13, 13), 1),
    ],
)
def test_outputs_are_one_row_a_sample(model: nn.Module, shape: tuple[int, ...], num_outputs: int) -> None:
    assert model(random(4, *shape)).shape == (4, num_outputs)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 30), (2, 9)])
def test_it_is_the_network_of_the_paper(channels: int, size: int) -> None:
    """Pool before ReLU, and rows and columns that a pool drops: outputs and gradients of every map are what they are of 'same' ones."""
    model = VisionCNN(channels, size).double()
    inputs = random(3, channels, size, size).double()
    hidden = inputs
    for convolution in (model.conv1, model.conv2, model.conv3):
        hidden = functional.max_pool2d(functional.relu(functional.conv2d(hidden, convolution.weight, convolution.bias, padding=1)), 2)
    expected, found = functional.linear(hidden.flatten(1), model.linear.weight, model.linear.bias), model(inputs)
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    torch.testing.assert_close(torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(expected.sum(), parameters))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (build(SmallCNN, 1), (1, 8, 8)),
        (build(SmallCNN, 3), (1, 8, 8)),
        (build(VisionCNN, 1, 28, 1), (1, 28, 28)),
    ],
)
def test_per_sample_gradients_equal_one_backward_each(model: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = random(5, *shape)
    expected = []
    for sample in inputs:
        rows = []
        for output in model_outputs(model, sample[None])[0]:
            gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        expected.append(torch.stack(rows))
    check_model(model)
    torch.testing.assert_close(per_sample_gradients(model, inputs), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "width"), [(build(SmallCNN, 1), (1, 8, 8), 129), (build(VisionCNN, 3, 32, 1), (3, 32, 32), 2049)]
)
def test_the_last_layer_is_found(model: nn.Module, shape: tuple[int, ...], width: int) -> None:
    inputs = random(3, *shape)
    assert find_last_layer(model, inputs) == "linear"
    assert last_layer_features(model, inputs).shape == (3, width)


def test_a_checkpoint_restores_the_outputs_bit_for_bit() -> None:
    """Weights are stored channels-last; a checkpoint of plain contiguous arrays must lead to the same numbers."""
    first, second = build(VisionCNN), VisionCNN().eval()
    second.load_state_dict({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in first.state_dict().items()})
    inputs = random(6, 1, 28, 28)
    assert torch.equal(first(inputs), second(inputs))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ProblemError, match="too small"):
        VisionCNN(1, 7, 1)
    with pytest.raises(ProblemError, match="num_outputs"):
        SmallCNN(0)
