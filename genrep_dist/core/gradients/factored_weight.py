"""The gradient of one weight as a sum of outer products over positions: dW = sum_t g_t p_t^T.

g_t (O,) are the gradients of the layer's output, p_t (K,) its input patches. The patch of a linear layer is its input; the patch of a
convolution holds the K = kernel x I input numbers under its kernel. All layers share one form: inputs (B, H, W, I), channels last, and
output gradients (B, C, T, O) for B samples, C outputs of the model and T positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Pair = tuple[int, int]

FEW_CHANNELS = 8
"""Inputs with fewer channels are copied channel by channel, in longer runs of memory."""
LARGE_GRADIENT_NUMEL = 2**15
"""Gradients of at least this size are written to their place by one product a sample. For smaller ones a copy costs less than the calls."""
PATCH_NUMEL = 2**21
"""Numbers of the patches that are extracted at once. They fit a processor's cache and bound the memory for any number of rows."""
MIN_GRADIENT_ROWS = 8
"""Samples whose dense gradients are computed at once even where they hold more than PATCH_NUMEL numbers."""
PASS_NUMEL = 2**21
"""Numbers of the factors of one forward and backward pass. They fit a processor's cache."""
MIN_PASS_ROWS, MAX_PASS_ROWS = 32, 256


@dataclass(frozen=True)
class FactoredWeight:
    """The weight of one layer and the geometry of its factors. All fields are plain data and are stored with every block of features."""

    name: str
    """The parameter's full name."""
    kind: Literal["product", "embedding"]
    shape: tuple[int, ...]
    """The parameter's shape: (O, I), (O, I / groups, *kernel) or (vocabulary, D); the reverse of (O, I) where it is ``transposed``."""
    size: Pair = (1, 1)
    """Height and width of the input; (1, T) for a linear layer on T vectors."""
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    """Zeros (before, after) in height and in width. Other padding modes are applied to the input itself."""
    groups: int = 1
    padding_index: int | None = None
    """The token of an embedding that has no gradient."""
    transposed: bool = False
    """Whether the parameter is (I, O), as some libraries keep the weight of a linear layer."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def in_channels(self) -> int:
        """I, the numbers at one place of the input."""
        return self.shape[1] * self.groups

    @property
    def output_size(self) -> Pair:
        """Height and width of the layer's output."""
        padded = [size + sum(pad) for size, pad in zip(self.size, self.padding, strict=True)]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        high, wide = ((p - span) // s + 1 for p, span, s in zip(padded, spans, self.stride, strict=True))
        return high, wide

    @property
    def num_positions(self) -> int:
        """T, the number of outer products in one gradient."""
        return math.prod(self.output_size)

    @property
    def patch_numel(self) -> int:
        """K / groups, the input numbers that one output sees at one position."""
        return self.shape[1] * math.prod(self.kernel)

    @property
    def product_form(self) -> Literal["tokens", "positions", "gradients"]:
        """The form of inner products with the fewest multiply-adds, the same for all blocks of a weight.

        "tokens": over tokens that two samples share. "positions": sum of (p . p')(g . g') over all pairs of positions. "gradients": between
        dense gradients of the weight.
        """
        if self.kind == "embedding":
            return "tokens"
        dense = self.groups > 1 or self.num_positions**2 * (self.patch_numel + self.shape[0]) >= self.numel
        return "gradients" if dense else "positions"

    @property
    def patch_is_input(self) -> bool:
        """Whether a patch is the input at one place, as in linear layers and 1x1 convolutions."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == ((0, 0), (0, 0))

    @property
    def patch_rows(self) -> int:
        """Samples whose patches are extracted at once."""
        return max(1, PATCH_NUMEL // (self.num_positions * self.patch_numel * self.groups))

    def gradient_rows(self, num_outputs: int) -> int:
        """Samples whose patches and dense gradients are computed at once."""
        return min(self.patch_rows, max(MIN_GRADIENT_ROWS, PATCH_NUMEL // (num_outputs * self.numel)))

    def patch_buffer(self, num_rows: int, like: Tensor) -> Tensor:
        """Uninitialised memory for the patches of ``num_rows`` samples, with the dtype and device of ``like``."""
        return like.new_empty(num_rows * self.num_positions * self.patch_numel * self.groups)


def factored_numel(weights: Sequence[FactoredWeight], rest_numel: int, num_outputs: int) -> int:
    """The most numbers that one sample's factors hold, with ``rest_numel`` dense gradients for each output."""
    total = rest_numel * num_outputs
    for weight in weights:
        if weight.kind == "embedding":
            total += weight.num_positions * num_outputs * weight.shape[1]
        else:
            total += math.prod(weight.size) * weight.in_channels + weight.num_positions * num_outputs * weight.shape[0]
    return total


def pass_rows(numel: int) -> int:
    """Samples of one forward and backward pass, a power of two, where one sample's factors hold ``numel`` numbers."""
    return max(MIN_PASS_ROWS, min(MAX_PASS_ROWS, (1 << (PASS_NUMEL // max(1, numel)).bit_length()) // 2))


def extract_patches(weight: FactoredWeight, inputs: Tensor, buffer: Tensor | None = None) -> Tensor:
    """Patches (B, groups, T, K) of inputs (B, H, W, I), K kernel place by kernel place with the channels innermost.

    A view where the patch is the input; otherwise one copy, into ``buffer`` (at least as many numbers) if it is given.
    """
    rows, channels = inputs.shape[0], inputs.shape[3]
    if weight.patch_is_input:
        windows = inputs.reshape(rows, -1, 1, channels)
    elif channels < FEW_CHANNELS and weight.groups == 1:
        return _patches_by_channel(weight, inputs, buffer, channels_first=False).unsqueeze(1)
    else:
        padded = _zero_padded(weight, inputs)
        per_row, high, wide, one = padded.stride()
        (stride_h, stride_w), (dilation_h, dilation_w) = weight.stride, weight.dilation
        overlapping = padded.as_strided(
            (rows, *weight.output_size, *weight.kernel, channels),
            (per_row, stride_h * high, stride_w * wide, dilation_h * high, dilation_w * wide, one),
        )
        windows = _copied(overlapping, buffer).reshape(rows, weight.num_positions, -1, channels)
    if weight.groups == 1:
        return windows.reshape(rows, 1, weight.num_positions, -1)
    grouped = windows.reshape(rows, weight.num_positions, windows.shape[2], weight.groups, -1)
    return grouped.permute(0, 3, 1, 2, 4).reshape(rows, weight.groups, weight.num_positions, -1)


def _zero_padded(weight: FactoredWeight, inputs: Tensor) -> Tensor:
    (top, bottom), (left, right) = weight.padding
    return functional.pad(inputs, (0, 0, left, right, top, bottom)) if any((top, bottom, left, right)) else inputs.contiguous()


def _patches_by_channel(weight: FactoredWeight, inputs: Tensor, buffer: Tensor | None, *, channels_first: bool) -> Tensor:
    """Patches (B, T, K) of inputs (B, H, W, I), with positions innermost in memory.

    K is in the parameter's order (I, *kernel) with ``channels_first``, else (*kernel, I).
    """
    padded = _zero_padded(weight, inputs).permute(0, 3, 1, 2).contiguous()
    per_row, per_channel, high, wide = padded.stride()
    (stride_h, stride_w), (dilation_h, dilation_w) = weight.stride, weight.dilation
    order, steps = (*weight.kernel, padded.shape[1]), (dilation_h * high, dilation_w * wide, per_channel)
    if channels_first:
        order, steps = (order[2], *order[:2]), (steps[2], *steps[:2])
    overlapping = padded.as_strided((len(inputs), *order, *weight.output_size), (per_row, *steps, stride_h * high, stride_w * wide))
    return _copied(overlapping, buffer).reshape(len(inputs), -1, weight.num_positions).transpose(1, 2)


def _copied(windows: Tensor, buffer: Tensor | None) -> Tensor:
    return windows if buffer is None else buffer[: windows.numel()].view(windows.shape).copy_(windows)


def weight_gradients(
    weight: FactoredWeight, inputs: Tensor, gradients: Tensor, out: Tensor | None = None, buffer: Tensor | None = None
) -> Tensor:
    """Gradients (B, C, O, K) of the weight, K in the order of :func:`extract_patches`; :func:`in_parameter_order` reorders them.

    Written into ``out`` (contiguous) if it is given, with the patches in ``buffer``: new memory costs as much time as the products.
    """
    rows, num_outputs, positions, width = gradients.shape
    patches = extract_patches(weight, inputs, buffer)
    if weight.groups == 1:
        left = gradients.permute(0, 1, 3, 2).reshape(rows, num_outputs * width, positions)
        target = None if out is None else out.view(rows, num_outputs * width, weight.patch_numel)
        return torch.bmm(left, patches[:, 0], out=target).view(rows, num_outputs, width, weight.patch_numel)
    grouped = gradients.reshape(rows, num_outputs, positions, weight.groups, -1).permute(0, 1, 3, 4, 2)
    result = torch.matmul(grouped, patches.unsqueeze(1)).reshape(rows, num_outputs, weight.shape[0], weight.patch_numel)
    return result if out is None else out.copy_(result)


def in_parameter_order(weight: FactoredWeight, gradients: Tensor) -> Tensor:
    """:func:`weight_gradients` (B, C, O, K) as a view (B, C, *shape of the parameter)."""
    unfolded = gradients.reshape(*gradients.shape[:3], *weight.kernel, weight.shape[1])
    if len(weight.shape) == 4:
        return unfolded.permute(0, 1, 2, 5, 3, 4)
    if len(weight.shape) == 3:
        return unfolded[:, :, :, 0].permute(0, 1, 2, 4, 3)
    plain = unfolded[:, :, :, 0, 0]
    return plain.transpose(2, 3) if weight.transposed else plain


def from_parameter_order(weight: FactoredWeight, gradients: Tensor) -> Tensor:
    """The inverse of :func:`in_parameter_order`: (B, C, *shape of the parameter) as (B, C, O, K), contiguous."""
    channels_last = gradients.movedim(3, -1) if len(weight.shape) > 2 else gradients.transpose(2, 3) if weight.transposed else gradients
    return channels_last.flatten(3).contiguous()


def write_gradients(weight: FactoredWeight, inputs: Tensor, gradients: Tensor, out: Tensor, buffer: Tensor) -> None:
    """Write the weight's gradients in the parameter's order to ``out`` (B, C, numel), with the patches in ``buffer``."""
    rows, num_outputs, positions, width = gradients.shape
    if weight.groups > 1 or weight.transposed or not (weight.patch_is_input or positions < width):
        values = in_parameter_order(weight, weight_gradients(weight, inputs, gradients, buffer=buffer))
        out.view(values.shape).copy_(values)
        return
    # Here the gradients hold more numbers than the patches, so the patches are reordered and not the gradients.
    plain = weight.patch_is_input
    patches = extract_patches(weight, inputs)[:, 0] if plain else _patches_by_channel(weight, inputs, buffer, channels_first=True)
    left = gradients.transpose(2, 3).reshape(rows, num_outputs * width, positions)
    if num_outputs == 1 and weight.numel >= LARGE_GRADIENT_NUMEL:
        torch.bmm(left, patches, out=out.view(rows, width, weight.patch_numel))
    else:
        out.copy_(torch.bmm(left, patches).view(out.shape))
