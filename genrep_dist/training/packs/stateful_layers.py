"""Stacked layers whose results follow from more than a sample and the parameters: dropout and batch normalisation.

A slot draws and averages as its model does alone, over the rows of its batch that count. What stands in the other rows of a slot, and in
other slots, changes none of its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from genrep_dist.training.packs.stacked_layers import Stacked

DIMENSIONS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    nn.Dropout1d: (3,),
    nn.Dropout2d: (4,),
    nn.Dropout3d: (5,),
}
"""Dimensions of a batch for each layer that treats channels alike. With others torch takes the batch for one sample, or fails."""
BATCH_NORMS, CHANNEL_DROPOUTS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


class SlotRows:
    """Which rows of a step count: ``counted`` (S, B) bool, ``counts`` how many of each slot."""

    def __init__(self, counted: Tensor, counts: Sequence[int]) -> None:
        self.counted, self.counts = counted, counts
        self._averaging: dict[tuple[int, torch.dtype], Tensor] = {}

    @cached_property
    def positions(self) -> Tensor:
        """Of the rows that count among all S B."""
        return self.counted.flatten().nonzero().squeeze(1)

    def averaging(self, each: int, dtype: torch.dtype) -> Tensor:
        """(S, 2, B ``each``): factors with which a product takes the mean over ``each`` values of every row that counts.

        Twice, because BLAS multiplies a single row as a vector, but only where it is the sole one of a batch.
        """
        if (each, dtype) not in self._averaging:
            sizes = each * self.counted.sum(dim=1, keepdim=True).clamp(min=1)
            factors = (self.counted.to(dtype) / sizes).repeat_interleave(each, dim=1)
            self._averaging[each, dtype] = torch.stack([factors, factors], dim=1)
        return self._averaging[each, dtype]


class Stateful(Stacked):
    """Base: a pack sets ``rows`` before each forward pass (None: all rows count), and ``generators``, one for each slot."""

    def __init__(self, plain: nn.Module, slots: int) -> None:
        super().__init__(plain, slots)
        self.rows: SlotRows | None = None
        self.generators: Sequence[torch.Generator] = ()
        self.statistics = {name: b.new_zeros((slots, *b.shape)) for name, b in plain.named_buffers(recurse=False)}

    def load(self, slot: int, plain: nn.Module) -> None:
        super().load(slot, plain)
        for name, stacked in self.statistics.items():
            stacked[slot] = plain.get_buffer(name)

    def unload(self, slot: int, plain: nn.Module) -> None:
        super().unload(slot, plain)
        for name, stacked in self.statistics.items():
            plain.get_buffer(name).copy_(stacked[slot])


class StackedDropout(Stateful):
    """Dropout of numbers or channels, (S B, ...) -> (S B, ...). A slot draws for its rows that count, in their order, as torch does alone.

    Random numbers come from the CPU on any device.
    """

    def __init__(self, plain: nn.Module, slots: int) -> None:
        super().__init__(plain, slots)
        layer = cast("nn.Dropout", plain)
        self.keep, self.inplace = 1 - layer.p, layer.inplace
        self.dims = DIMENSIONS.get(type(plain))

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return inputs
        if self.dims is not None and inputs.dim() not in self.dims:
            raise ValueError(f"expected a batch of {self.dims[0]} dimensions, got {inputs.dim()}")
        if self.rows is None:
            return functional.dropout(inputs, 1 - self.keep)
        each = inputs.shape[1:] if self.dims is None else (inputs.shape[1], *[1] * (inputs.dim() - 2))
        # torch draws truth values for numbers, and numbers for channels.
        kept = torch.empty(sum(self.rows.counts), math.prod(each), dtype=torch.bool if self.dims is None else inputs.dtype)
        own_rows = torch.split(kept, list(self.rows.counts))
        for own, generator in zip(own_rows, self.generators, strict=True):
            if len(own):
                own.bernoulli_(self.keep, generator=generator)
        factors = kept.to(inputs).mul_(1 / self.keep)
        if len(factors) < len(inputs):
            # Other rows stay as they are: they are finite, and zeros in their place might not be.
            factors = factors.new_ones(len(inputs), factors.shape[1]).index_copy_(0, self.rows.positions, factors)
        factors = factors.view(len(inputs), *each)
        return inputs.mul_(factors) if self.inplace else inputs * factors


class StackedBatchNorm(Stateful):
    """Batch normalisation (S B, C, ...) -> (S B, C, ...). Statistics of a slot are those of its rows that count.

    Scales and shifts (S, C), running statistics (S, C) and counts of batches (S,) in ``statistics``. Raises ValueError, as torch does, if
    a slot has one value per channel.
    """

    def __init__(self, plain: nn.Module, slots: int) -> None:
        super().__init__(plain, slots)
        layer = cast("nn.BatchNorm1d", plain)
        self.title, self.eps, self.momentum, self.dims = type(plain).__name__, layer.eps, layer.momentum, DIMENSIONS[type(plain)]

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() not in self.dims:
            raise ValueError(f"expected a batch of {' or '.join(map(str, self.dims))} dimensions, got {inputs.dim()}")
        last = inputs.movedim(1, -1)
        by_slot = last.reshape(self.slots, -1, last.shape[-1]).to(torch.promote_types(inputs.dtype, torch.float32))
        weight, bias = (None if one is None else one.unsqueeze(1) for one in map(self.stacked.get, ("weight", "bias")))
        if self.training or "running_mean" not in self.statistics:
            each = last[0, ..., 0].numel()
            rows = self.rows or _all_rows(inputs, self.slots)
            if any(count * each == 1 for count in rows.counts):
                raise ValueError(f"Expected more than 1 value per channel when training, got input size {[1, *inputs.shape[1:]]}")
            with torch.autocast(inputs.device.type, enabled=False):
                # As torch's own, whose statistics are never rounded further.
                found = _Normalization.apply(by_slot, weight, bias, rows, each, self.eps)  # type: ignore[no-untyped-call]
            result, mean, variance = cast("tuple[Tensor, Tensor, Tensor]", found)
            if self.training and self.statistics:
                self._follow(rows, each, mean.squeeze(1), variance.squeeze(1))
        else:
            mean, variance = (self.statistics[name].unsqueeze(1) for name in ("running_mean", "running_var"))
            result = (by_slot - mean) * (variance + self.eps).rsqrt()
            result = result if weight is None else result * weight
            result = result if bias is None else result + bias
        return result.to(inputs.dtype).view(last.shape).movedim(-1, 1)

    @torch.no_grad()
    def _follow(self, rows: SlotRows, each: int, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics of the slots that take a step with those of the batch, ``mean`` and ``variance`` (S, C)."""
        sizes = each * rows.counted.sum(dim=1)
        steps, batches = sizes > 0, self.statistics.get("num_batches_tracked")
        if batches is not None:
            batches += steps
        factor: float | Tensor = self.momentum if self.momentum is not None else 0.0
        if self.momentum is None and batches is not None:
            factor = (1 / batches.clamp(min=1).to(mean.dtype)).unsqueeze(1)
        unbiased = variance * (sizes.to(variance.dtype) / (sizes - 1).clamp(min=1)).unsqueeze(1)
        for name, values in (("running_mean", mean), ("running_var", unbiased)):
            running = self.statistics[name]
            running.copy_(torch.where(steps.unsqueeze(1), factor * values + (1 - factor) * running, running))


def _all_rows(inputs: Tensor, slots: int) -> SlotRows:
    rows = len(inputs) // slots
    return SlotRows(torch.ones(slots, rows, dtype=torch.bool, device=inputs.device), [rows] * slots)


def _means(averaging: Tensor, values: Tensor) -> Tensor:
    """Means (S, 1, C) over the rows of ``values`` (S, R, C) that count."""
    channels = values.shape[2]
    # A single column is multiplied as a vector too.
    wide = values.expand(-1, -1, 2) if channels == 1 else values
    return torch.bmm(averaging, wide)[:, :1, :channels]


class _Normalization(torch.autograd.Function):
    """inputs (S, R, C), scale and shift (S, 1, C) or None -> results (S, R, C), means and variances (S, 1, C) of each slot."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, rows: SlotRows, each: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        averaging = rows.averaging(each, inputs.dtype)
        mean = _means(averaging, inputs)
        normal = inputs - mean
        variance = _means(averaging, normal.square())
        inverse = (variance + eps).rsqrt()
        normal *= inverse
        ctx.save_for_backward(normal, inverse, weight)
        ctx.averaging, ctx.has_bias = averaging, bias is not None
        # Product and sum are rounded one by one: what rounds them together differs at the end of a tensor.
        result = normal.clone() if weight is None else normal * weight
        if bias is not None:
            result += bias
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (normal, inverse, weight), gradient, averaging = ctx.saved_tensors, gradients[0].contiguous(), ctx.averaging
        # Gradients of rows that do not count are zero.
        along, of_sum = _means(averaging, gradient * normal), _means(averaging, gradient)
        factors = averaging[:, 0].unsqueeze(2)
        sizes = (factors > 0).sum(dim=1, keepdim=True)
        input_gradient = None
        if ctx.needs_input_grad[0]:
            mixed = (normal * along + of_sum) * (factors > 0)
            input_gradient = (gradient - mixed) * (inverse if weight is None else inverse * weight)
        weight_gradient = along * sizes if weight is not None and ctx.needs_input_grad[1] else None
        bias_gradient = of_sum * sizes if ctx.has_bias and ctx.needs_input_grad[2] else None
        return input_gradient, weight_gradient, bias_gradient, None, None, None


def stack_stateful_layer(plain: nn.Module, slots: int) -> Stateful | None:
    """The stacked layer for dropout or batch normalisation like ``plain``; None where there is none."""
    # Exact types: a subclass may compute something else.
    if type(plain) is nn.Dropout or type(plain) in CHANNEL_DROPOUTS:
        return StackedDropout(plain, slots) if 0 < cast("nn.Dropout", plain).p < 1 else None
    if type(plain) in BATCH_NORMS:
        names = {name for name, _ in plain.named_buffers(recurse=False)}
        return StackedBatchNorm(plain, slots) if names in (STATISTICS, set()) else None
    return None


def is_stateful(plain: nn.Module) -> bool:
    """Whether a layer is dropout or batch normalisation that a stacked pack computes."""
    return stack_stateful_layer(plain, 1) is not None
