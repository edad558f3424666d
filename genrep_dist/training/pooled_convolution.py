"""Convolutions of sequences that lie channels-last in memory, and whose way back costs what the gradient holds.

A pool over all positions hands back one position of each channel. The gradients of the convolution before it are then sums over B x O
windows instead of B x O x L: for the paper's text network half of a step's arithmetic is gone, and the rest is the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

FEWEST_POSITIONS = 16
"""Of a sequence: below, one product with everything costs less than picking windows."""


class SequenceConvolution(torch.autograd.Function):
    """``functional.conv2d`` of images (B, I, 1, L) with weights (O, I, 1, K); strides, paddings and dilations are along L."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int, groups: int
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.dilation, ctx.groups, ctx.has_bias = stride, padding, dilation, groups, bias is not None
        return functional.conv2d(images, weight, bias, (1, stride), (0, padding), (1, dilation), groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        # Who differentiates once more gets what can be.
        plain = ctx.stride == ctx.dilation == ctx.groups == 1 and gradient.dtype == torch.float32 and not torch.is_grad_enabled()
        picked = _picked(gradient.squeeze(2)) if plain else None
        if picked is None:
            found = torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight,
                [len(weight)] if ctx.has_bias else None,
                [1, ctx.stride],
                [0, ctx.padding],
                [1, ctx.dilation],
                False,
                [0, 0],
                ctx.groups,
                [*ctx.needs_input_grad[:2], ctx.has_bias],
            )
            return (*found, None, None, None, None)
        places, values = picked
        to_images = _to_sequences(ctx, images, weight, places, values) if ctx.needs_input_grad[0] else None
        to_weight = _to_weight(ctx, images, weight, places, values) if ctx.needs_input_grad[1] else None
        return to_images, to_weight, values.sum(dim=0) if ctx.has_bias else None, None, None, None, None


def _picked(gradient: Tensor) -> tuple[Tensor, Tensor] | None:
    """The place (B, O) and value (B, O) of the one number of ``gradient`` (B, O, L) along L that is not zero; None where there are more.

    What is smaller than the rounding of the largest counts as zero.
    """
    channels, positions = gradient.shape[1:]
    if positions < FEWEST_POSITIONS or int(torch.count_nonzero(gradient[:1])) > channels:
        return None
    ones = gradient.new_ones(positions)
    # With one number, its size times its place, by its size, is its place: one product finds all.
    total, moment = torch.matmul(torch.stack([ones, ones.cumsum(0) - 1]), gradient.abs().transpose(1, 2)).unbind(1)
    ratio = moment / total
    places = torch.where(torch.isfinite(ratio), ratio.round(), 0.0).long()
    values = gradient.gather(2, places.unsqueeze(2)).squeeze(2)
    return (places, values) if torch.equal(values.abs(), total) else None


def _to_weight(ctx: Any, images: Tensor, weight: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """(O, I, 1, K), dW[o, :, k] = sum_b values[b, o] x[b, :, places[b, o] + k - padding]."""
    rows, channels, _, length = images.shape
    outputs, taps = len(weight), weight.shape[3]
    under = places.t() + torch.arange(-ctx.padding, taps - ctx.padding).view(-1, 1, 1)  # (K, O, B)
    weights = torch.where((under >= 0) & (under < length), values.t(), 0.0)
    sums = functional.embedding_bag(
        (under.clamp(0, length - 1) + length * torch.arange(rows)).flatten(),
        images.permute(0, 2, 3, 1).reshape(-1, channels),
        rows * torch.arange(taps * outputs),
        mode="sum",
        per_sample_weights=weights.flatten(),
    )
    return sums.view(taps, outputs, channels).permute(1, 2, 0).unsqueeze(2).contiguous()


def _to_sequences(ctx: Any, images: Tensor, weight: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """(B, I, 1, L): each position takes its share of every window that lies on it."""
    rows, channels, _, length = images.shape
    outputs, taps = len(weight), weight.shape[3]
    positions = length + 2 * ctx.padding - taps + 1
    in_order, windows = places.sort(dim=1, stable=True)
    by_row = torch.arange(rows).unsqueeze(1)
    counts = torch.bincount((in_order + positions * by_row).flatten(), minlength=rows * positions).view(rows, positions)
    # The windows that lie on a position are neighbours in that order: those at as many places as there are taps.
    before = functional.pad(counts.cumsum(dim=1), (taps, taps - 1), mode="constant")
    before[:, positions + taps :] = outputs
    on_it = slice(ctx.padding, ctx.padding + length)
    first, sizes = before[:, :-taps][:, on_it], (before[:, taps:] - before[:, :-taps])[:, on_it].flatten()
    starts = sizes.cumsum(0) - sizes
    which = torch.repeat_interleave((first + outputs * by_row).flatten() - starts, sizes)
    which += torch.arange(len(which))
    where = torch.repeat_interleave(torch.arange(ctx.padding, ctx.padding + length).repeat(rows), sizes)
    tap = where - in_order.take(which)
    table = weight.squeeze(2).permute(2, 0, 1).reshape(-1, channels)  # (K O, I)
    sums = functional.embedding_bag(
        tap * outputs + windows.take(which),
        table,
        starts,
        mode="sum",
        per_sample_weights=values.gather(1, windows).take(which),
    )
    return sums.view(rows, 1, length, channels).permute(0, 3, 1, 2)
