"""Convolutions of sequences: the way back from one position of each channel, against autograd's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.training import sequence_convolution
from genrep_dist.training.sequence_convolution import fast_sequence_convolutions

SHAPES: dict[str, dict[str, object]] = {
    "as in the text network": {"kernel_size": 5, "padding": 2, "bias": False},
    "unpadded": {"kernel_size": 3},
    "with more padding than taps": {"kernel_size": 3, "padding": 7},
    "of single positions": {"kernel_size": 1},
    "strided, with a rest": {"kernel_size": 4, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 4, "padding": 3},
    "all of it": {"kernel_size": 2, "stride": 2, "dilation": 3, "padding": 5},
    "in groups": {"kernel_size": 5, "padding": 2, "groups": 2},
}
SELECTED = ("as in the text network", "unpadded", "with more padding than taps", "of single positions")
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "pool": lambda hidden: functional.adaptive_max_pool1d(hidden, 1).squeeze(2),
    "amax": lambda hidden: hidden.amax(dim=2),
    "max": lambda hidden: hidden.max(dim=2).values,
    "mean": lambda hidden: hidden.mean(dim=2),
    "largest and smallest": lambda hidden: hidden.amax(dim=2) - hidden.amin(dim=2),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pool", POOLS)
def test_gradients_after_a_pool(shape: str, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv1d(4, 6, **SHAPES[shape])  # type: ignore[arg-type]
    inputs = torch.randn(7, 4, 41)
    slopes = torch.randn(7, 6)
    found_single: list[bool] = []
    single_positions = sequence_convolution._single_positions

    def seen(gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        result = single_positions(gradient)
        found_single.append(result is not None)
        return result

    monkeypatch.setattr(sequence_convolution, "_single_positions", seen)

    def gradients(module: nn.Conv1d, values: Tensor) -> tuple[Tensor, ...]:
        values = values.detach().requires_grad_()
        outputs = torch.relu(POOLS[pool](module(values)))
        return torch.autograd.grad(outputs, [values, *module.parameters()], slopes.to(values))

    with fast_sequence_convolutions(layer):
        found = gradients(layer, inputs)
    expected = gradients(layer.double(), inputs.double())
    torch.testing.assert_close(found, tuple(one.float() for one in expected), rtol=1e-4, atol=1e-5)
    assert found_single == ([pool in ("pool", "amax", "max")] if shape in SELECTED else [])


def test_what_takes_no_gradient_gets_none() -> None:
    layer = nn.Conv1d(4, 6, 5)
    assert layer.bias is not None
    layer.weight.requires_grad_(False)
    inputs = torch.randn(3, 4, 40, requires_grad=True)
    with fast_sequence_convolutions(layer):
        outputs = layer(inputs).amax(dim=2).sum()
        to_inputs, to_bias = torch.autograd.grad(outputs, [inputs, layer.bias])
    assert to_inputs.shape == inputs.shape
    assert torch.equal(to_bias, torch.full((6,), 3.0))


def test_a_batch_of_no_rows() -> None:
    layer = nn.Conv1d(4, 6, 5)
    inputs = torch.randn(0, 4, 40, requires_grad=True)
    with fast_sequence_convolutions(layer):
        found = torch.autograd.grad(layer(inputs).amax(dim=2).sum(), [inputs, layer.weight])
    assert [part.shape for part in found] == [inputs.shape, layer.weight.shape]
    assert found[1].abs().max() == 0


def test_a_model_may_differentiate_on_its_way() -> None:
    """A force is the gradient of an energy: the way back is gone twice."""
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 3, 5, padding=2)
    inputs = torch.randn(4, 2, 30)

    def gradients(module: nn.Conv1d, values: Tensor) -> tuple[Tensor, ...]:
        values = values.detach().requires_grad_()
        energy = torch.tanh(module(values)).amax(dim=2).sum()
        (force,) = torch.autograd.grad(energy, values, create_graph=True)
        return torch.autograd.grad(force.square().sum(), [module.weight])

    with fast_sequence_convolutions(layer):
        found = gradients(layer, inputs)
    expected = gradients(layer.double(), inputs.double())
    torch.testing.assert_close(found, tuple(one.float() for one in expected), rtol=1e-4, atol=1e-5)
    assert expected[0].abs().max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), exponent=st.integers(-44, 37), positions=st.integers(16, 300))
def test_one_number_of_each_channel_is_found(seed: int, exponent: int, positions: int) -> None:
    """Where it is and what it is, of any size, bit for bit; and a second one is noticed."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(positions, (3, 5), generator=generator)
    values = torch.randn(3, 5, generator=generator) * 10.0**exponent
    values[0, 0] = 0.0
    gradient = torch.zeros(3, 5, positions).scatter_(2, places.unsqueeze(2), values.unsqueeze(2))
    found = sequence_convolution._single_positions(gradient)
    assert found is not None
    assert torch.equal(found[1], values)
    kept = values != 0
    assert torch.equal(found[0][kept], places[kept])
    others = (places[2] + 1) % positions
    gradient[2].scatter_(1, others.unsqueeze(1), 1e-3 * values[2].abs().clamp(min=1e-40).unsqueeze(1))
    assert sequence_convolution._single_positions(gradient) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_passed_on(bad: float) -> None:
    """Nothing hides a gradient that is NaN or Inf."""
    torch.manual_seed(0)
    layer = nn.Conv1d(2, 3, 3, padding=1)
    inputs = torch.randn(4, 2, 20, requires_grad=True)
    slopes = torch.ones(4, 3)
    slopes[1, 2] = bad
    with fast_sequence_convolutions(layer):
        found = torch.autograd.grad(layer(inputs).amax(dim=2), [inputs, layer.weight], slopes)
    assert not bool(torch.isfinite(found[0][1]).all())
    assert not bool(torch.isfinite(found[1][2]).all())


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_results_and_gradients_are_torchs(padding: int, groups: int) -> None:
    """Inside and outside of the block outputs and gradients are equal, and the modules are as before."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv1d(4, 6, 5, stride=2, padding=padding, dilation=2, groups=groups), nn.ReLU(), nn.Conv1d(6, 3, 2, bias=False)
    )
    for inputs in (torch.randn(7, 4, 30), torch.randn(7, 30, 4).transpose(1, 2)):
        inputs.requires_grad_()
        leaves = [inputs, *layers.parameters()]
        outside = layers(inputs)
        expected = torch.autograd.grad(outside.square().sum(), leaves)
        with fast_sequence_convolutions(layers):
            inside = layers(inputs)
            assert inside.stride()[1] == 1
            found = torch.autograd.grad(inside.square().sum(), leaves)
            assert layers(inputs[0]).shape == outside[0].shape
        torch.testing.assert_close(inside, outside)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert not any("forward" in vars(layer) for layer in layers)
    with pytest.raises(RuntimeError, match="out of the block"), fast_sequence_convolutions(layers):
        raise RuntimeError("out of the block")
    assert not any("forward" in vars(layer) for layer in layers)
