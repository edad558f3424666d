"""Layers whose per-sample gradients follow from what went in and the gradient of what came out: the algebra of each kind.

The gradient of a weight is a sum of outer products over positions, dW = sum_t g_t p_t^T, of output gradients g_t (O,) and input patches
p_t (K,); a linear layer's patch is its input, a convolution's the K = kernel x I numbers under its kernel. Everything here is brought
into one form: inputs (B, H, W, I), channels last, and gradients (B, C, T, O) for B samples, C outputs of the model and T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[int, int]

FEW_CHANNELS = 8
"""Of an input whose patches are copied channel by channel."""
LARGE_GRADIENT = 2**15
"""Numbers of a gradient that is written into its place by one product a sample; below, the calls cost more than a copy."""
PATCH_NUMBERS = 2**21
"""Patches that are spelled out at once: so many fit a processor's cache, and memory stays flat however many rows there are."""
FEW_ROWS = 8
"""Samples that are spelled out at once even where their gradients are more numbers than that: fewer would cost more in calls."""


@dataclass(frozen=True)
class Weight:
    """The weight of one layer, and how its gradient is made of factors. All fields are plain data: a stored block carries them."""

    name: str
    """The parameter's full name."""
    kind: Literal["product", "embedding"]
    shape: tuple[int, ...]
    """The parameter's own shape: (O, I), (O, I / groups, *kernel) or (vocabulary, D)."""
    size: Pair = (1, 1)
    """Height and width of the input; (1, T) for a linear layer on T vectors."""
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    """Zeros (before, after) in height and in width; other paddings are part of the input already."""
    groups: int = 1
    padding_index: int | None = None
    """The token of an embedding that has no gradient."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def channels(self) -> int:
        """I, the numbers at one place of the input."""
        return self.shape[1] * self.groups

    @property
    def grid(self) -> Pair:
        """Output positions in height and in width."""
        padded = [size + sum(pad) for size, pad in zip(self.size, self.padding, strict=True)]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        high, wide = ((p - span) // s + 1 for p, span, s in zip(padded, spans, self.stride, strict=True))
        return high, wide

    @property
    def positions(self) -> int:
        """T, over how many positions the gradient is a sum."""
        return math.prod(self.grid)

    @property
    def patch(self) -> int:
        """K / groups, the numbers of one patch that one output sees."""
        return self.shape[1] * math.prod(self.kernel)

    @property
    def product(self) -> Literal["tokens", "vectors", "positions", "gradients"]:
        """How inner products are taken with the fewest multiply-adds: over shared tokens, as (x . x')(g . g'), over pairs of positions,
        or from the weight's gradients themselves. The same for every block, as all of them must meet.
        """
        outputs, patch = self.shape[0], self.patch
        if self.kind == "embedding":
            return "tokens"
        if self.groups > 1 or self.positions**2 * (patch + outputs) >= self.numel:
            return "gradients"
        return "vectors" if self.positions == 1 else "positions"


def patches(weight: Weight, inputs: Tensor, room: Tensor | None = None) -> Tensor:
    """(B, H, W, I) -> (B, groups, T, K): the numbers under the kernel at each position, tap by tap, channels together.

    For a linear layer a view; else one copy, into ``room`` (numbers enough) where it is given.
    """
    rows, channels = inputs.shape[0], inputs.shape[3]
    if _is_plain(weight):
        windows = inputs.reshape(rows, -1, 1, channels)
    elif channels < FEW_CHANNELS and weight.groups == 1:
        # Longer runs of memory: tap by tap, all positions of a channel together.
        return _by_channel(weight, inputs, room, taps_first=True).unsqueeze(1)
    else:
        padded = _zero_padded(weight, inputs)
        per_row, high, wide, one = padded.stride()
        (stride_h, stride_w), (dilation_h, dilation_w) = weight.stride, weight.dilation
        overlapping = padded.as_strided(
            (rows, *weight.grid, *weight.kernel, channels),
            (per_row, stride_h * high, stride_w * wide, dilation_h * high, dilation_w * wide, one),
        )
        windows = _copied(overlapping, room).reshape(rows, weight.positions, -1, channels)
    if weight.groups == 1:
        return windows.reshape(rows, 1, weight.positions, -1)
    grouped = windows.reshape(rows, weight.positions, windows.shape[2], weight.groups, -1)
    return grouped.permute(0, 3, 1, 2, 4).reshape(rows, weight.groups, weight.positions, -1)


def _is_plain(weight: Weight) -> bool:
    """Whether a patch is the input at one place."""
    return weight.kernel == (1, 1) and weight.stride == (1, 1) and weight.padding == ((0, 0), (0, 0))


def _zero_padded(weight: Weight, inputs: Tensor) -> Tensor:
    (top, bottom), (left, right) = weight.padding
    return functional.pad(inputs, (0, 0, left, right, top, bottom)) if any((top, bottom, left, right)) else inputs.contiguous()


def _by_channel(weight: Weight, inputs: Tensor, room: Tensor | None, *, taps_first: bool) -> Tensor:
    """(B, H, W, I) -> (B, T, K), the numbers under the kernel at each position: tap by tap, or channel by channel as in the parameter.
    In memory positions are last.
    """
    padded = _zero_padded(weight, inputs).permute(0, 3, 1, 2).contiguous()
    per_row, per_channel, high, wide = padded.stride()
    (stride_h, stride_w), (dilation_h, dilation_w) = weight.stride, weight.dilation
    taps, strides = weight.kernel, (dilation_h * high, dilation_w * wide)
    order, steps = (
        ((*taps, padded.shape[1]), (*strides, per_channel)) if taps_first else ((padded.shape[1], *taps), (per_channel, *strides))
    )
    overlapping = padded.as_strided((len(inputs), *order, *weight.grid), (per_row, *steps, stride_h * high, stride_w * wide))
    return _copied(overlapping, room).reshape(len(inputs), -1, weight.positions).transpose(1, 2)


def _copied(windows: Tensor, room: Tensor | None) -> Tensor:
    return windows if room is None else room[: windows.numel()].view(windows.shape).copy_(windows)


def write_rows(weight: Weight, inputs: Tensor, gradients: Tensor, out: Tensor, room: Tensor) -> None:
    """Gradients of the weight in the parameter's own order into ``out`` (B, C, numel), with the patches in ``room``."""
    rows, num_outputs, positions, width = gradients.shape
    plain = _is_plain(weight)
    if weight.groups > 1 or not (plain or positions < width):
        values = in_order(weight, weight_rows(weight, inputs, gradients, room=room))
        out.view(values.shape).copy_(values)
        return
    # Where the gradients are more numbers than the patches, it is these that are put in order.
    spread = patches(weight, inputs)[:, 0] if plain else _by_channel(weight, inputs, room, taps_first=False)
    first = gradients.transpose(2, 3).reshape(rows, num_outputs * width, positions)
    if num_outputs == 1 and weight.numel >= LARGE_GRADIENT:
        torch.bmm(first, spread, out=out.view(rows, width, weight.patch))
    else:
        out.copy_(torch.bmm(first, spread).view(out.shape))


def weight_rows(weight: Weight, inputs: Tensor, gradients: Tensor, out: Tensor | None = None, room: Tensor | None = None) -> Tensor:
    """Gradients (B, C, O, K) of the weight, K tap by tap: the order in which products are taken; see :func:`in_order`.

    Written into ``out``, contiguous, where it is given, with the patches in ``room``: fresh memory costs as much as the products.
    """
    rows, num_outputs, positions, width = gradients.shape
    spread = patches(weight, inputs, room)
    if weight.groups == 1:
        first = gradients.permute(0, 1, 3, 2).reshape(rows, num_outputs * width, positions)
        target = None if out is None else out.view(rows, num_outputs * width, weight.patch)
        return torch.bmm(first, spread[:, 0], out=target).view(rows, num_outputs, width, weight.patch)
    grouped = gradients.reshape(rows, num_outputs, positions, weight.groups, -1).permute(0, 1, 3, 4, 2)
    found = torch.matmul(grouped, spread.unsqueeze(1)).reshape(rows, num_outputs, weight.shape[0], weight.patch)
    return found if out is None else out.copy_(found)


def in_order(weight: Weight, rows: Tensor) -> Tensor:
    """:func:`weight_rows` (B, C, O, K) as a view (B, C, *shape of the parameter)."""
    spread = rows.reshape(*rows.shape[:3], *weight.kernel, weight.shape[1])
    if len(weight.shape) == 4:
        return spread.permute(0, 1, 2, 5, 3, 4)
    if len(weight.shape) == 3:
        return spread[:, :, :, 0].permute(0, 1, 2, 4, 3)
    return spread[:, :, :, 0, 0]


def rows_at_once(weight: Weight) -> int:
    """Samples whose patches are spelled out together."""
    return max(1, PATCH_NUMBERS // (weight.positions * weight.patch * weight.groups))


def rows_spelled(weight: Weight, num_outputs: int) -> int:
    """Samples whose patches and gradients are spelled out together: of either PATCH_NUMBERS, or FEW_ROWS where those are more."""
    return min(rows_at_once(weight), max(FEW_ROWS, PATCH_NUMBERS // (num_outputs * weight.numel)))


def room_for(weight: Weight, rows: int, like: Tensor) -> Tensor:
    """Memory for the patches of so many samples."""
    return like.new_empty(rows * weight.positions * weight.patch * weight.groups)


FACTOR_NUMBERS = 2**21
"""Numbers that the layers of one pass see and hand on: so many stay in a processor's cache, and memory does not grow with the block."""
LEAST_ROWS, MOST_ROWS = 32, 256
"""Bounds of the samples of one pass; fewer would cost more in calls than they save in memory."""


def rows_of_a_pass(held: int) -> int:
    """Samples that are computed, or multiplied with a few others, at once, where each is ``held`` numbers."""
    return max(LEAST_ROWS, min(MOST_ROWS, (1 << (FACTOR_NUMBERS // max(1, held)).bit_length()) // 2))


def held_numbers(weights: Sequence[Weight], rest: int, num_outputs: int) -> int:
    """Numbers that one sample's factors are at most: of its weights, and ``rest`` gradients for each output."""
    held = rest * num_outputs
    for weight in weights:
        if weight.kind == "embedding":
            held += weight.positions * num_outputs * weight.shape[1]
        else:
            held += math.prod(weight.size) * weight.channels + weight.positions * num_outputs * weight.shape[0]
    return held


# -- what each kind of module is made into -----------------------------------------------------------------------------------------

Spatial = tuple[Tensor, Tensor]
Small = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """How a kind of module is read. ``inputs_dim`` are the dimensions its input may have, the batch's included (None: any from 2 on)."""

    weight: Callable[[nn.Module, str, tuple[int, ...]], Weight] | None
    """(module, parameter name, shape of one batch's input) -> the factored weight; None where the weight's gradient is small."""
    factors: Callable[[nn.Module, Tensor, Tensor], Spatial] | None
    """(module, input (B, ...), output gradients (B, C, ...)) -> the factors, in the form above."""
    small: Small
    """Gradients (B, C, n) of the parameters that are kept as they are, by their name in the module."""
    inputs_dim: tuple[int, ...] | None = None


def _linear(module: nn.Module, name: str, shape: tuple[int, ...]) -> Weight:
    assert isinstance(module, nn.Linear)
    return Weight(name, "product", tuple(module.weight.shape), (1, math.prod(shape[1:-1])))


def _linear_factors(_module: nn.Module, inputs: Tensor, gradients: Tensor) -> Spatial:
    rows, num_outputs = gradients.shape[:2]
    return (
        inputs.reshape(rows, 1, -1, inputs.shape[-1]),
        gradients.reshape(rows, num_outputs, -1, gradients.shape[-1]),
    )


def _linear_small(_module: nn.Module, _inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    return {"bias": gradients.flatten(2, -2).sum(dim=2) if gradients.dim() > 3 else gradients}


def _conv(module: nn.Module, name: str, shape: tuple[int, ...]) -> Weight:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    before = _paddings(module)
    size = tuple(shape[2:])
    if module.padding_mode != "zeros":
        size, before = tuple(s + sum(p) for s, p in zip(size, before, strict=True)), [(0, 0)] * len(size)
    flat = module.weight.dim() == 3
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    return Weight(
        name,
        "product",
        tuple(module.weight.shape),
        _pair(size, 1, flat=flat),
        _pair(kernel, 1, flat=flat),
        _pair(stride, 1, flat=flat),
        _pair(dilation, 1, flat=flat),
        ((0, 0), before[0]) if flat else (before[0], before[1]),
        module.groups,
    )


def _pair(values: Sequence[int], first: int, *, flat: bool) -> Pair:
    return (first, values[0]) if flat else (values[0], values[1])


def _paddings(module: nn.Conv1d | nn.Conv2d) -> list[Pair]:
    """(before, after) of each spatial dimension."""
    if module.padding == "valid":
        return [(0, 0) for _ in module.kernel_size]
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in module.padding]


def _conv_factors(module: nn.Module, inputs: Tensor, gradients: Tensor) -> Spatial:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    if module.padding_mode != "zeros":
        amounts = [amount for pair in reversed(_paddings(module)) for amount in pair]
        inputs = functional.pad(inputs, amounts, mode=module.padding_mode)
    if inputs.dim() == 3:
        inputs = inputs.unsqueeze(2)
    rows, num_outputs, channels = gradients.shape[:3]
    # In one order in memory, as they come back from the store: how a product is computed may depend on it.
    flat = gradients.movedim(2, -1).reshape(rows, num_outputs, -1, channels).contiguous()
    return inputs.permute(0, 2, 3, 1), flat


def _channel_bias(_module: nn.Module, _inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    return {"bias": gradients.flatten(3).sum(dim=3) if gradients.dim() > 3 else gradients}


def _embedding(module: nn.Module, name: str, shape: tuple[int, ...]) -> Weight:
    assert isinstance(module, nn.Embedding)
    size = (1, math.prod(shape[1:]))
    return Weight(name, "embedding", tuple(module.weight.shape), size, padding_index=module.padding_idx)


def _embedding_factors(_module: nn.Module, inputs: Tensor, gradients: Tensor) -> Spatial:
    rows, num_outputs = gradients.shape[:2]
    return inputs.reshape(rows, -1), gradients.reshape(rows, num_outputs, -1, gradients.shape[-1])


def _nothing(_module: nn.Module, _inputs: Tensor, _gradients: Tensor) -> dict[str, Tensor]:
    return {}


def _channel_norm(normalise: Callable[[nn.Module, Tensor], Tensor]) -> Small:
    def small(module: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        scaled = gradients * normalise(module, inputs).unsqueeze(1)
        return {"weight": scaled.flatten(3).sum(dim=3) if scaled.dim() > 3 else scaled, **_channel_bias(module, inputs, gradients)}

    return small


def _batch_norm(module: nn.Module, inputs: Tensor) -> Tensor:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    return functional.batch_norm(inputs, module.running_mean, module.running_var, None, None, False, 0.0, module.eps)


def _instance_norm(module: nn.Module, inputs: Tensor) -> Tensor:
    assert isinstance(module, nn.modules.instancenorm._InstanceNorm)
    own = module.running_mean is None or not module.track_running_stats
    mean, variance = (None, None) if own else (module.running_mean, module.running_var)
    return functional.instance_norm(inputs, mean, variance, None, None, own, 0.0, module.eps)


def _group_norm(module: nn.Module, inputs: Tensor) -> Tensor:
    assert isinstance(module, nn.GroupNorm)
    return functional.group_norm(inputs, module.num_groups, None, None, module.eps)


def _layer_norm(module: nn.Module, inputs: Tensor, gradients: Tensor) -> dict[str, Tensor]:
    assert isinstance(module, nn.LayerNorm)
    normalised = functional.layer_norm(inputs, module.normalized_shape, None, None, module.eps)
    rows, num_outputs = gradients.shape[:2]
    inner = (rows, num_outputs, -1, math.prod(module.normalized_shape))
    return {
        "weight": (gradients * normalised.unsqueeze(1)).reshape(inner).sum(dim=2),
        "bias": gradients.reshape(inner).sum(dim=2),
    }


KINDS: dict[type[nn.Module], Kind] = {
    nn.Linear: Kind(_linear, _linear_factors, _linear_small),
    nn.Conv1d: Kind(_conv, _conv_factors, _channel_bias, (3,)),
    nn.Conv2d: Kind(_conv, _conv_factors, _channel_bias, (4,)),
    nn.Embedding: Kind(_embedding, _embedding_factors, _nothing, (1, 2, 3, 4)),
    nn.BatchNorm1d: Kind(None, None, _channel_norm(_batch_norm), (2, 3)),
    nn.BatchNorm2d: Kind(None, None, _channel_norm(_batch_norm), (4,)),
    nn.BatchNorm3d: Kind(None, None, _channel_norm(_batch_norm), (5,)),
    nn.InstanceNorm1d: Kind(None, None, _channel_norm(_instance_norm), (3,)),
    nn.InstanceNorm2d: Kind(None, None, _channel_norm(_instance_norm), (4,)),
    nn.GroupNorm: Kind(None, None, _channel_norm(_group_norm)),
    nn.LayerNorm: Kind(None, None, _layer_norm),
}
"""By exact type: a subclass may compute anything."""
