"""Per-sample features layer kind by layer kind against a loop of backward passes, and products of factors against dense ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from genrep_dist.core.gradients.dense import outputs, per_sample_gradients
from genrep_dist.core.gradients.factored import FeatureRows, inner_products
from genrep_dist.core.gradients.hooks import feature_rows
from genrep_dist.core.gradients.inspection import layout_of
from genrep_dist.errors import ProblemError
from tests.core.models import Squeezed, Tied, cnn, initialise, mlp, rows
from tests.core.test_dense_gradients import jacobian_by_loop


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


class Tail(nn.Module):
    """A layer under test, then a nonlinearity and a head, so that its output's gradient is nothing special."""

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
    "group norm": lambda: (nn.GroupNorm(2, 4), rows(4, 4, 3, 2)),
    "instance norm": lambda: (nn.InstanceNorm2d(4, affine=True), rows(4, 4, 3, 2)),
    "instance norm with statistics": lambda: (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), rows(4, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer(name: str, num_outputs: int) -> None:
    """Gradients, products, diagonals and single outputs, of a layer and the head behind it, without any slower way."""
    layer, inputs = LAYERS[name]()
    model = tailed(layer, inputs, num_outputs)
    layout = layout_of(model, inputs)
    assert not layout.functional
    assert not layout.looped
    check(model, inputs)


def check(model: nn.Module, inputs: Tensor) -> None:
    """All that feature rows promise, against one backward pass for each sample and output."""
    expected = jacobian_by_loop(model, inputs)
    assert expected.abs().max() > 1e-3
    close(per_sample_gradients(model, inputs), expected)
    found = feature_rows(model, inputs)
    close(found.dense(), expected)
    assert bool(found.finite().all())
    flat = expected.flatten(0, 1)
    gram = flat @ flat.T
    torch.testing.assert_close(inner_products(found, found), gram, rtol=1e-10, atol=1e-10 * float(gram.abs().max()))
    num_outputs = expected.shape[1]
    index = torch.arange(len(inputs)) % num_outputs
    chosen = feature_rows(model, inputs, index)
    across = expected[torch.arange(len(inputs)), index]
    close(chosen.dense()[:, 0], across)
    block = flat @ across.T
    torch.testing.assert_close(found.prepared().inner(chosen), block, rtol=1e-10, atol=1e-10 * float(block.abs().max()))
    torch.testing.assert_close(
        found.self_product(index), torch.einsum("bcp,bp->bc", expected, across), rtol=1e-10, atol=1e-10 * float(gram.abs().max())
    )
    halves = [found.part(0, 2), found.part(2, len(inputs))]
    close(FeatureRows.joined(halves).dense(), expected)
    torch.testing.assert_close(inner_products(*halves), gram[: 2 * num_outputs, 2 * num_outputs :], rtol=1e-10, atol=1e-10)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "cnn": lambda: (cnn(3), rows(5, 2, 6, 6)),
    "mlp returning (B,)": lambda: (Squeezed(mlp(1)).eval(), rows(7, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    check(*NETWORKS[name]())


# -- what must not be read off a backward pass ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(torch.tanh(self.body(inputs)))))
        return out


class UsedElsewhere(nn.Module):
    """The weight of a layer is used a second time, not through the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs)) @ self.body.weight)
        return out


class TiedEmbedding(nn.Module):
    """An embedding whose weight is also a linear layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embedding.weight
        self.head = nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.out(self.embedding(tokens).mean(dim=1))))
        return out


class SequenceFirst(nn.Module):
    """A layer that sees (T, B, I): its first dimension is not the samples, even where T = B."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs.transpose(0, 1))).mean(dim=0))
        return out


class Flattened(nn.Module):
    """A layer that sees (B T, I)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(inputs.reshape(-1, 4)))
        out: Tensor = self.head(hidden.reshape(len(inputs), -1, 3).mean(dim=1))
        return out


class Reversed(nn.Module):
    """A layer that sees the samples in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(inputs.flip(0)).flip(0)))
        return out


class Company(nn.Module):
    """Its outputs depend on the other samples of their batch; a sample's gradient is that of the sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(inputs + (inputs.sum(dim=0, keepdim=True) - inputs).detach())
        return out


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(inputs * self.scale))
        return out


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(input=inputs)))
        return out


class Doubling(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.body(inputs)
        out: Tensor = self.head(hidden[:, -1])
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.body(inputs, inputs, inputs, need_weights=False)
        out: Tensor = self.head(hidden.mean(dim=1))
        return out


class Unused(nn.Module):
    """A layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.head = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        self.idle(inputs)
        out: Tensor = self.head(inputs)
        return out


def parametrised() -> nn.Module:
    model = mlp(2)
    nn.utils.parametrizations.weight_norm(model.get_submodule("0"))
    return model


def hooked() -> nn.Module:
    model = mlp(2)
    model.get_submodule("0").register_forward_hook(lambda _module, _args, result: 2 * result)
    return model


def replaced_forward() -> nn.Module:
    model = mlp(2)
    layer = model.get_submodule("0")
    plain = layer.forward
    layer.forward = lambda inputs: 3 * plain(inputs)
    return model


def shared_module() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(4, 2))


def subclassed() -> nn.Module:
    return nn.Sequential(Doubling(4, 3), nn.Tanh(), nn.Linear(3, 2))


UNUSUAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str, str]] = {
    "layer called twice": (Twice, lambda: rows(5, 4), "body.weight", "runs 2 times"),
    "module in two places": (shared_module, lambda: rows(5, 4), "0.weight", "several layers"),
    "tied weights": (Tied, lambda: rows(5, 4), "first.weight", "several layers"),
    "tied embedding": (TiedEmbedding, lambda: torch.arange(10).reshape(5, 2) % 6, "embedding.weight", "several layers"),
    "weight used elsewhere": (UsedElsewhere, lambda: rows(5, 4), "body.weight", "used 2 times"),
    "sequence first": (SequenceFirst, lambda: rows(3, 3, 4), "body.weight", "not the samples"),
    "sequence first, two long": (SequenceFirst, lambda: rows(2, 2, 4), "body.weight", "not the samples"),
    "samples and positions together": (Flattened, lambda: rows(4, 3, 4), "body.weight", "not the samples"),
    "samples in another order": (Reversed, lambda: rows(5, 4), "body.weight", "does not follow"),
    "company": (Company, lambda: rows(5, 4), "head.weight", "depend on the other samples"),
    "own parameter": (OwnParameter, lambda: rows(5, 4), "scale", "not among the layers"),
    "keyword argument": (Keyword, lambda: rows(5, 4), "body.weight", "something else than one tensor"),
    "subclass": (subclassed, lambda: rows(5, 4), "0.weight", "Doubling is not among"),
    "parametrisation": (parametrised, lambda: rows(5, 4), "0.parametrizations.weight.original1", "not among the layers"),
    "hook": (hooked, lambda: rows(5, 4), "0.weight", "hooks of its own"),
    "replaced forward": (replaced_forward, lambda: rows(5, 4), "0.weight", "replaced forward"),
    "recurrent": (Recurrent, lambda: rows(4, 3, 4), "body.weight_ih_l0", "LSTM is not among"),
    "attention": (Attention, lambda: rows(4, 3, 4), "body.in_proj_weight", "MultiheadAttention is not among"),
    "unused": (Unused, lambda: rows(5, 4), "idle.weight", "used 0 times"),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_hooks_would_get_wrong_takes_a_slower_way(name: str) -> None:
    make, inputs, parameter, reason = UNUSUAL[name]
    model = make()
    before = [(hook, len(module._forward_hooks)) for module in model.modules() for hook in [id(module)]]
    model = initialise(model, 3)
    layout = layout_of(model, inputs())
    assert parameter in (*layout.functional, *layout.looped)
    way = next(way for way in layout.ways if parameter in way.parameters)
    assert reason in way.reason
    # The head is fine whatever comes before it, but for other samples.
    assert name == "company" or any(way.way == "factors" for way in layout.ways)
    check(model, inputs())
    assert before == [(id(module), len(module._forward_hooks)) for module in model.modules()]


class InPlace(nn.Module):
    """Outputs of layers that are changed in place afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        hidden.mul_(1.5).tanh_()
        out: Tensor = self.head(self.second(hidden).relu_())
        return out


def test_outputs_that_are_changed_in_place() -> None:
    model, inputs = initialise(InPlace(), 0), rows(5, 4)
    assert not layout_of(model, inputs).functional
    check(model, inputs)


class Branching(nn.Module):
    """Runs its layer twice for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        if float(inputs.detach().abs().max()) > 100:
            hidden = self.body(hidden)
        out: Tensor = self.head(hidden)
        return out


def test_a_model_that_branches_on_its_data_is_refused() -> None:
    model = initialise(Branching(), 0)
    feature_rows(model, rows(3, 4))
    with pytest.raises(ProblemError, match="more or less often"):
        feature_rows(model, 1000 * rows(3, 4))


def test_a_layout_is_made_anew_when_the_model_changes() -> None:
    model, inputs = initialise(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), 0), rows(5, 4)
    check(model, inputs)
    first, second = model[0], model[2]  # type: ignore[index]
    second.weight = first.weight
    check(model, inputs)
    first.weight.requires_grad_(False)
    assert feature_rows(model, inputs).order == (("0.bias", (4,)), ("2.bias", (4,)))
    first.register_forward_hook(lambda _module, _args, result: 2 * result)
    assert "hooks" in next(way for way in layout_of(model, inputs).ways if way.layer == "0").reason


def test_blocks_of_different_models_are_not_multiplied() -> None:
    first, second = feature_rows(mlp(1), rows(3, 4)), feature_rows(cnn(1), rows(3, 2, 6, 6))
    with pytest.raises(ProblemError, match="do not fit each other"):
        inner_products(first, second)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_told(bad: float) -> None:
    inputs = rows(40, 2, 6, 6)
    inputs[35, 1, 2, 3] = bad
    found = feature_rows(cnn(1), inputs)
    assert (~found.finite()).nonzero().flatten().tolist() == [35]


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
    found = feature_rows(model, inputs)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-10, atol=1e-10)
    flat = expected.flatten(0, 1)
    torch.testing.assert_close(
        inner_products(found, found), flat @ flat.T, rtol=1e-10, atol=1e-10 * max(1.0, float((flat @ flat.T).abs().max()))
    )
    assert not layout_of(model, inputs).functional


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
    left, right = (feature_rows(model, tokens) for tokens in spread)
    expected = left.dense().flatten(0, 1) @ right.dense().flatten(0, 1).T
    torch.testing.assert_close(inner_products(left, right), expected, rtol=1e-10, atol=1e-10)
    assert outputs(model, spread[0]).shape == (counts[0], num_outputs)
