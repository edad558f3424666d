"""Factored gradients of every layer type against a loop of backward passes, and their products against dense ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import inner_products
from genrep_dist.core.gradients.inspection import inspect_model
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.errors import ProblemError
from tests.core.models import Squeezed, check_gradients, cnn, initialise, jacobian_by_loop, mlp, rows


class Tail(nn.Module):
    """A layer under test, then a nonlinearity and a head, so that its output's gradient has no special structure."""

    def __init__(self, first: nn.Module, example: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.first = first
        self.head = nn.Linear(first(example).flatten(1).shape[1], num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.first(inputs)).flatten(1))
        return out


def tailed(first: nn.Module, inputs: Tensor, num_outputs: int) -> nn.Module:
    first.to(torch.float64).eval()
    return initialise(Tail(first, inputs, num_outputs), 0)


def conv2d(**options: object) -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(4, 6, **options), rows(4, 4, 9, 8)  # type: ignore[arg-type]


def conv1d(**options: object) -> tuple[nn.Module, Tensor]:
    return nn.Conv1d(4, 6, **options), rows(4, 4, 11)  # type: ignore[arg-type]


def wide2d(outputs: int, **options: object) -> tuple[nn.Module, Tensor]:
    """More channels than are copied one by one."""
    return nn.Conv2d(9, outputs, **options), rows(4, 9, 7, 6)  # type: ignore[arg-type]


def embedding(vocabulary: int = 7, **options: object) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return nn.Embedding(vocabulary, 3, **options), torch.randint(0, vocabulary, (4, 6), generator=generator)  # type: ignore[arg-type]


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "linear": lambda: (nn.Linear(5, 4), rows(4, 5)),
    "linear, wide enough to stay factored": lambda: (nn.Linear(15, 14), rows(4, 15)),
    "linear without bias": lambda: (nn.Linear(5, 4, bias=False), rows(4, 5)),
    "linear on a short sequence": lambda: (nn.Linear(20, 19), rows(4, 3, 20)),
    "linear on a long sequence": lambda: (nn.Linear(4, 3), rows(4, 9, 4)),
    "linear on a grid": lambda: (nn.Linear(4, 3), rows(4, 2, 3, 4)),
    "conv2d": lambda: conv2d(kernel_size=3),
    "conv2d 1x1": lambda: conv2d(kernel_size=1),
    "conv2d 1x1, strided": lambda: conv2d(kernel_size=1, stride=2),
    "conv2d, padded": lambda: conv2d(kernel_size=3, padding=1),
    "conv2d, unevenly padded": lambda: conv2d(kernel_size=(3, 2), padding=(2, 1)),
    "conv2d, same": lambda: conv2d(kernel_size=(3, 2), padding="same"),
    "conv2d, same and dilated": lambda: conv2d(kernel_size=(2, 3), padding="same", dilation=(3, 2)),
    "conv2d, valid": lambda: conv2d(kernel_size=3, padding="valid"),
    "conv2d, strided": lambda: conv2d(kernel_size=3, stride=(2, 3), padding=1),
    "conv2d, stride that leaves a rest": lambda: conv2d(kernel_size=2, stride=3),
    "conv2d, dilated": lambda: conv2d(kernel_size=3, dilation=(2, 3), padding=(1, 2)),
    "conv2d, grouped": lambda: conv2d(kernel_size=3, groups=2, padding=1),
    "conv2d, depthwise style": lambda: (nn.Conv2d(4, 8, 3, groups=4, stride=2, dilation=2), rows(4, 4, 9, 8)),
    "conv2d without bias": lambda: conv2d(kernel_size=3, bias=False),
    "conv2d of many channels": lambda: wide2d(5, kernel_size=(3, 2), padding=(2, 1), stride=(2, 1)),
    "conv2d of many channels, dilated": lambda: wide2d(5, kernel_size=2, dilation=(3, 2), padding=1),
    "conv2d of more outputs than positions": lambda: wide2d(80, kernel_size=(3, 2), padding=(2, 1), stride=(2, 1)),
    "conv2d of more outputs than positions, dilated": lambda: wide2d(80, kernel_size=2, dilation=(3, 2), padding=1),
    "conv1d of more outputs than positions": lambda: (nn.Conv1d(9, 30, 5, padding=2, stride=2), rows(4, 9, 11)),
    "conv2d, reflected": lambda: conv2d(kernel_size=3, padding=2, padding_mode="reflect"),
    "conv2d, circular": lambda: conv2d(kernel_size=3, padding=(1, 2), padding_mode="circular", stride=2),
    "conv2d, replicated and same": lambda: conv2d(kernel_size=(3, 2), padding="same", padding_mode="replicate"),
    "conv2d, one position": lambda: conv2d(kernel_size=(9, 8)),
    "conv2d, few positions": lambda: (nn.Conv2d(9, 20, 3), rows(4, 9, 4, 3)),
    "conv2d, channels last": lambda: (
        nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        rows(4, 4, 9, 8),
    ),
    "conv1d": lambda: conv1d(kernel_size=3),
    "conv1d, everything": lambda: conv1d(kernel_size=3, stride=2, padding=2, dilation=2, groups=2),
    "conv1d, same": lambda: conv1d(kernel_size=4, padding="same"),
    "conv1d, circular": lambda: conv1d(kernel_size=3, padding=2, padding_mode="circular", bias=False),
    "embedding, repeated tokens": lambda: embedding(4),
    "embedding, many tokens": lambda: embedding(50),
    "embedding with padding": lambda: embedding(5, padding_idx=2),
    "embedding, one token": lambda: (nn.Embedding(5, 3), torch.tensor([1, 3, 3, 0])),
    "embedding, a grid of tokens": lambda: (nn.Embedding(5, 3), torch.arange(24).reshape(4, 2, 3) % 5),
    "embedding, int32": lambda: (nn.Embedding(5, 3), torch.arange(12, dtype=torch.int32).reshape(4, 3) % 5),
    "embedding, sparse": lambda: embedding(6, sparse=True),
    "batch norm": lambda: (nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)), rows(4, 2, 4, 4)),
    "batch norm of vectors": lambda: (nn.BatchNorm1d(5), rows(4, 5)),
    "batch norm of sequences": lambda: (nn.BatchNorm1d(5), rows(4, 5, 3)),
    "batch norm of volumes": lambda: (nn.BatchNorm3d(2), rows(4, 2, 2, 3, 2)),
    "layer norm": lambda: (nn.LayerNorm(6), rows(4, 3, 6)),
    "layer norm over two dimensions": lambda: (nn.LayerNorm((3, 6)), rows(4, 2, 3, 6)),
    "layer norm without bias": lambda: (nn.LayerNorm(6, bias=False), rows(4, 6)),
    "rms norm": lambda: (nn.RMSNorm(6), rows(4, 3, 6)),
    "prelu": lambda: (nn.PReLU(), rows(4, 3, 5)),
    "prelu of channels": lambda: (nn.PReLU(3), rows(4, 3, 5)),
    "prelu of vectors": lambda: (nn.PReLU(5), rows(4, 5)),
    "group norm": lambda: (nn.GroupNorm(2, 4), rows(4, 4, 3, 2)),
    "instance norm": lambda: (nn.InstanceNorm2d(4, affine=True), rows(4, 4, 3, 2)),
    "instance norm with statistics": lambda: (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), rows(4, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_type(name: str, num_outputs: int) -> None:
    """Gradients, products, diagonals and single outputs, of a layer and the head behind it, by layer rules alone."""
    layer, inputs = LAYERS[name]()
    model = tailed(layer, inputs, num_outputs)
    inspection = inspect_model(model, inputs)
    assert not inspection.torch_func
    assert not inspection.loop
    check_gradients(model, inputs)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "cnn": lambda: (cnn(3), rows(5, 2, 6, 6)),
    "mlp returning (B,)": lambda: (Squeezed(mlp(1)).eval(), rows(7, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    check_gradients(*NETWORKS[name]())


def test_blocks_of_different_models_are_not_multiplied() -> None:
    first, second = factored_gradients(mlp(1), rows(3, 4)), factored_gradients(cnn(1), rows(3, 2, 6, 6))
    with pytest.raises(ProblemError, match="do not fit each other"):
        inner_products(first, second)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_found(bad: float) -> None:
    inputs = rows(40, 2, 6, 6)
    inputs[35, 1, 2, 3] = bad
    found = factored_gradients(cnn(1), inputs)
    assert (~found.finite_rows()).nonzero().flatten().tolist() == [35]


# -- random networks -----------------------------------------------------------------------------------------------------------------


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A few random layers on images or on tokens, and a head."""
    num_outputs, count = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    layers = list(draw(st.sampled_from([_token_layers, _image_layers]))(draw))
    if isinstance(layers[0], nn.Embedding):
        length = draw(st.integers(6, 12))
        inputs = torch.randint(
            0, layers[0].num_embeddings, (count, length), generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))
        )
    else:
        inputs = rows(count, 2, 8, 7, seed=draw(st.integers(0, 9)))
    body = nn.Sequential(*layers, nn.Flatten()).to(torch.float64).eval()
    width = body(inputs).shape[1]
    return initialise(nn.Sequential(body, nn.Linear(width, num_outputs)), draw(st.integers(0, 99))), inputs


_MODES: tuple[Literal["zeros", "circular", "replicate"], ...] = ("zeros", "circular", "replicate")


def _image_layers(draw: st.DrawFn) -> Iterator[nn.Module]:
    channels = 2
    for _ in range(draw(st.integers(1, 2))):
        groups = draw(st.sampled_from([1, 2]))
        wide = groups * draw(st.integers(1, 3))
        padding, mode = draw(st.integers(0, 2)), draw(st.sampled_from(_MODES))
        kernel, dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 2))), draw(st.integers(1, 2))
        stride = draw(st.integers(1, 2))
        bias = draw(st.booleans())
        yield nn.Conv2d(channels, wide, kernel, stride, padding, dilation, groups, bias, padding_mode=mode)
        channels = wide
        yield draw(st.sampled_from([nn.Identity(), nn.BatchNorm2d(channels), nn.GroupNorm(1, channels)]))
        yield draw(st.sampled_from([nn.Tanh(), nn.ReLU(inplace=True), nn.AvgPool2d(2, ceil_mode=True)]))
        if channels % 2:
            yield nn.Conv2d(channels, 2, 1)
            channels = 2


class _Turned(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(1, 2)


class _MaxOver(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.amax(dim=2)


def _token_layers(draw: st.DrawFn) -> Iterator[nn.Module]:
    padding = draw(st.sampled_from([None, 0, 1]))
    yield nn.Embedding(draw(st.integers(2, 40)), 4, padding_idx=padding)
    if draw(st.booleans()):
        yield nn.Linear(4, 4, bias=draw(st.booleans()))
        yield nn.LayerNorm(4)
    yield _Turned()
    yield nn.Conv1d(4, draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 2)), bias=draw(st.booleans()))
    yield nn.ReLU(inplace=draw(st.booleans()))
    if draw(st.booleans()):
        yield _MaxOver()


@settings(max_examples=60, deadline=None)
@given(networks())
def test_random_networks(network: tuple[nn.Module, Tensor]) -> None:
    model, inputs = network
    expected = jacobian_by_loop(model, inputs)
    found = factored_gradients(model, inputs)
    torch.testing.assert_close(found.to_dense(), expected, rtol=1e-10, atol=1e-10)
    flat = expected.flatten(0, 1)
    torch.testing.assert_close(
        inner_products(found, found), flat @ flat.T, rtol=1e-10, atol=1e-10 * max(1.0, float((flat @ flat.T).abs().max()))
    )
    assert not inspect_model(model, inputs).torch_func


@settings(max_examples=40, deadline=None)
@given(
    vocabulary=st.integers(1, 60),
    counts=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    length=st.integers(1, 8),
    num_outputs=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_products_over_shared_tokens(vocabulary: int, counts: tuple[int, int], length: int, num_outputs: int, seed: int) -> None:
    """Frequent and rare tokens, blocks that share few or none of them."""
    generator = torch.Generator().manual_seed(seed)
    model = initialise(nn.Sequential(nn.Embedding(vocabulary, 3, padding_idx=0), nn.Flatten(), nn.Linear(3 * length, num_outputs)), seed)
    # Most tokens are small numbers.
    spread = [(torch.rand(count, length, generator=generator) ** 3 * vocabulary).long() for count in counts]
    left, right = (factored_gradients(model, tokens) for tokens in spread)
    expected = left.to_dense().flatten(0, 1) @ right.to_dense().flatten(0, 1).T
    torch.testing.assert_close(inner_products(left, right), expected, rtol=1e-10, atol=1e-10)
    assert model_outputs(model, spread[0]).shape == (counts[0], num_outputs)
