"""Transformers as people write them in plain torch.nn: all their gradients follow from one batched backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.core.gradients.inspection import inspect_model, slow_layers
from genrep_dist.core.gradients.last_layer import find_last_layer, last_layer_features
from tests.core.models import check_gradients, initialise, rows, seeded

WIDTH, HEADS = 8, 2


class Block(nn.Module):
    """Causal attention of two heads and a network of two layers, with normalisation before each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)).bool())

    def forward(self, hidden: Tensor) -> Tensor:
        count, length, _ = hidden.shape
        query, key, value = (
            part.view(count, length, HEADS, -1).transpose(1, 2) for part in self.mix(self.first(hidden)).split(WIDTH, dim=2)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)
        mask = self.get_buffer("mask")[:length, :length]
        attended = scores.masked_fill(~mask, -math.inf).softmax(dim=3) @ value
        hidden = hidden + self.out(attended.transpose(1, 2).reshape(count, length, WIDTH))
        out: Tensor = hidden + self.narrow(functional.gelu(self.wide(self.second(hidden))))
        return out


class LikeGPT2(nn.Module):
    """Learned positions, blocks, and a head at the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, WIDTH), nn.Embedding(8, WIDTH)
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        out: Tensor = self.head(self.norm(self.blocks(hidden))[:, -1])
        return out


class LikeBERT(nn.Module):
    """Positions (1, T), segments, padding that attention ignores, and torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, WIDTH, padding_idx=0)
        self.positions, self.segments, self.norm = nn.Embedding(8, WIDTH), nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pool, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        hidden = self.norm(self.tokens(tokens) + self.positions(places) + self.segments(torch.zeros_like(tokens)))
        hidden = self.encoder(hidden, src_key_padding_mask=tokens == 0)
        out: Tensor = self.head(torch.tanh(self.pool(hidden[:, 0])))
        return out


class LikeViT(nn.Module):
    """Patches, a class token, positions that are parameters, torch's encoder, and a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.token, self.positions = nn.Parameter(torch.zeros(1, 1, WIDTH)), nn.Parameter(torch.zeros(1, 5, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scale, self.head = nn.Parameter(torch.ones(WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.token.expand(len(images), -1, -1), patches], dim=1) + self.positions
        hidden = self.encoder(hidden)
        out: Tensor = self.head((hidden * self.scale)[:, 0])
        return out


class RootMeanSquare(nn.Module):
    """A normalisation of one's own, with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * (hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + 1e-6))


class LikeLlama(nn.Module):
    """Normalisation by root mean squares, rotated queries and keys, fused causal attention, a gated network, no biases."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, WIDTH)
        self.norms = nn.ModuleList([RootMeanSquare(), RootMeanSquare(), nn.RMSNorm(WIDTH)])
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.wide, self.narrow = (
            nn.Linear(WIDTH, 16, bias=False),
            nn.Linear(WIDTH, 16, bias=False),
            nn.Linear(16, WIDTH, bias=False),
        )
        self.head = nn.Linear(WIDTH, 2, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens)
        normed = self.norms[0](hidden)
        query, key = self._rotated(self.query(normed)), self._rotated(self.key(normed))
        value = self.value(normed).view(*normed.shape[:2], HEADS, -1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.norms[1](hidden)
        hidden = hidden + self.narrow(functional.silu(self.gate(normed)) * self.wide(normed))
        out: Tensor = self.head(self.norms[2](hidden)[:, -1])
        return out

    def _rotated(self, values: Tensor) -> Tensor:
        even, odd = values.view(*values.shape[:2], HEADS, 2, -1).transpose(1, 2).unbind(dim=3)  # (B, heads, T, 2)
        angles = torch.outer(torch.arange(values.shape[1], dtype=values.dtype), torch.tensor([1.0, 0.1], dtype=values.dtype))
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([even * cosines - odd * sines, even * sines + odd * cosines], dim=3)


class SequenceFirst(nn.Module):
    """The sequence comes before the samples, as torch's layers have it by default: also where both are as many."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.first = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 16), 1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(torch.tanh(self.first(self.tokens(tokens.T)))).mean(dim=0))
        return out


def padded_tokens() -> Tensor:
    drawn = torch.randint(1, 11, (5, 6), generator=seeded(0))
    drawn[1, 4:] = drawn[3, 3:] = 0
    return drawn


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "GPT-2": (LikeGPT2, padded_tokens),
    "BERT": (LikeBERT, padded_tokens),
    "ViT": (LikeViT, lambda: rows(5, 1, 4, 4)),
    "Llama": (LikeLlama, padded_tokens),
    "sequence first": (SequenceFirst, padded_tokens),
    "sequence first, as long as the batch": (SequenceFirst, lambda: padded_tokens()[:3, :3]),
    "sequence first, two long": (SequenceFirst, lambda: padded_tokens()[:2, :2]),
}


@pytest.mark.parametrize("name", MODELS)
def test_all_gradients_follow_from_one_batched_backward_pass(name: str) -> None:
    build, inputs = MODELS[name]
    model = initialise(build(), 1)
    assert not slow_layers(inspect_model(model, inputs()))
    check_gradients(model, inputs())
    single = inspect_model(model.float(), inputs().float() if inputs().is_floating_point() else inputs())
    assert not slow_layers(single)


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (3, 4), (1, 3, 4), (3, 1)], ids=str)
def test_a_parameter_that_broadcasts_has_a_copy_for_each_sample(shape: tuple[int, ...]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift, self.head = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape)), nn.Linear(12, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(inputs * self.scale - self.shift).flatten(1))
            return out

    for count in (2, 3, 4):  # also as many samples as positions
        model = initialise(Scaled(), 1)
        inspection = inspect_model(model, rows(count, 3, 4))
        assert {one.name for one in inspection.spread} == {"scale", "shift"}
        check_gradients(model, rows(count, 3, 4))


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_attention_layer_is_left_as_it_was(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(4, 2, batch_first=batch_first)

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = layer, nn.Linear(4, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
            rows = inputs if batch_first else inputs.transpose(0, 1)
            hidden, weights = self.body(rows, rows, rows, None, True, mask)
            out: Tensor = self.head(hidden.mean(dim=1 if batch_first else 0)) + weights.mean(dim=(1, 2)).unsqueeze(1)
            return out

    model = initialise(Attention(), 2)
    assert not slow_layers(inspect_model(model, rows(4, 3, 4)))
    check_gradients(model, rows(4, 3, 4))
    assert "forward" not in vars(layer)


class Padded(nn.Module):
    """An encoder that computes on nested tensors in evaluation mode, without gradients and with padding."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, batch_first=True)
        self.words, self.encoder = nn.Embedding(9, WIDTH, padding_idx=0), nn.TransformerEncoder(layer, 2)
        self.head, self.pool = nn.Linear(WIDTH, 2), pool

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        hidden: Tensor = self.encoder(self.words(tokens), src_key_padding_mask=padding)
        if self.pool == "first":
            return self.head(hidden[:, 0])  # type: ignore[no-any-return]
        if self.pool == "largest":
            return self.head(hidden.masked_fill(padding[..., None], -9.0).amax(dim=1))  # type: ignore[no-any-return]
        kept = (~padding)[..., None]
        return self.head((hidden * kept).sum(dim=1) / kept.sum(dim=1))  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("pool", ["first", "largest", "mean"])
def test_the_last_layer_of_an_encoder_with_padding(pool: str) -> None:
    torch.manual_seed(0)
    model = Padded(pool).eval()
    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 7, 8, 1, 2]])
    assert find_last_layer(model, tokens) == "head"
    weights = torch.cat([model.head.weight, model.head.bias[:, None]], dim=1)
    torch.testing.assert_close(last_layer_features(model, tokens) @ weights.T, model(tokens), rtol=1e-4, atol=1e-5)
