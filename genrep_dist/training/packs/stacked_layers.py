"""Layers that hold the parameters of S models of one architecture, the *slots*, and apply each to its own rows.

The rows of a batch are the slots' rows one after the other: inputs (S B, ...), slot s has the rows from s B on. What a network does sample
by sample between these layers needs no change. A layer that ``shares_input`` takes inputs (B, ...), which are those of each slot. Products
are batched, one matrix product per slot, of shapes that do not depend on S: no number depends on how many slots there are, or on what is
in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_RUN = 8
"""Numbers in a row of a window (width x channels), below which windows are copied one kernel element at a time, in longer runs of memory.
With the reused buffers this makes a step of the digits' network about 1.2 times as fast."""


class Stacked(nn.Module):
    """Base: parameters by name in ``stacked``, (S, ...), and the translation between a plain layer's parameter and a slot's."""

    shares_input = False
    """Whether inputs are (B, ...), the same for all slots, and need no gradient."""

    def __init__(self, plain: nn.Module, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.stacked: dict[str, Tensor] = {}
        for name, parameter in plain.named_parameters(recurse=False):
            one = self.to_slot(name, parameter.detach())
            self.stacked[name] = one.new_zeros((slots, *one.shape)).requires_grad_(parameter.requires_grad)

    def to_slot(self, name: str, plain: Tensor) -> Tensor:
        """A plain parameter in the shape in which a slot holds it."""
        del name
        return plain

    def from_slot(self, name: str, slot: Tensor) -> Tensor:
        """The inverse of :meth:`to_slot`."""
        del name
        return slot

    def by_slot(self, stacked: Tensor) -> Tensor:
        """A tensor of a stacked parameter's shape with S as its first dimension, the same memory."""
        return stacked.detach()

    def load(self, slot: int, plain: nn.Module) -> None:
        """Copy the parameters of a plain layer into a slot."""
        with torch.no_grad():
            for name, stacked in self.stacked.items():
                self.by_slot(stacked)[slot] = self.to_slot(name, plain.get_parameter(name))

    def unload(self, slot: int, plain: nn.Module) -> None:
        """Copy a slot's parameters into a plain layer."""
        with torch.no_grad():
            for name, stacked in self.stacked.items():
                plain.get_parameter(name).copy_(self.from_slot(name, self.by_slot(stacked)[slot]))


class StackedLinear(Stacked):
    """x (S B, ..., in), or (B, ..., in) for all slots, -> (S B, ..., out). Weights (S, in, out), biases (S, 1, out)."""

    def to_slot(self, name: str, plain: Tensor) -> Tensor:
        return plain.t().contiguous() if name == "weight" else plain.unsqueeze(0)

    def from_slot(self, name: str, slot: Tensor) -> Tensor:
        return slot.t() if name == "weight" else slot.squeeze(0)

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.stacked["weight"], self.stacked.get("bias")
        width = weight.shape[2]
        rows = inputs.reshape(1 if self.shares_input else self.slots, -1, inputs.shape[-1]).expand(self.slots, -1, -1)
        if min(weight.shape[1:]) == 1:
            # BLAS multiplies a matrix of one row or column as a vector, but only where it is the sole one of a batch: pad it.
            narrow = (0, int(width == 1), 0, int(weight.shape[1] == 1))
            weight, rows = functional.pad(weight, narrow), functional.pad(rows, (0, narrow[3]))
            bias = None if bias is None else functional.pad(bias, narrow[:2])
        product = torch.bmm(rows, weight) if bias is None else torch.baddbmm(bias, rows, weight)
        return product[..., :width].reshape(-1, *inputs.shape[1:-1], width)


class StackedConv(Stacked):
    """Convolutions in one or two dimensions as products with unfolded windows: x (S B, C, *sizes) or (B, C, *sizes) -> (S B, O, *sizes).

    Weights (S, kh kw C, O), channels last in a window as in memory; biases (S, 1, O). Results are channels-last in memory.
    """

    def __init__(self, plain: nn.Conv1d | nn.Conv2d, slots: int) -> None:
        self._shape = tuple(plain.weight.shape)
        super().__init__(plain, slots)
        # A convolution in one dimension is one over images of a single row.
        fill = (1,) * (4 - len(self._shape))
        assert not isinstance(plain.padding, str)
        self.kernel = _pair((*fill, *self._shape[2:]))
        self.stride, self.dilation = _pair((*fill, *plain.stride)), _pair((*fill, *plain.dilation))
        self.padding = _pair((*(0 for _ in fill), *plain.padding))
        self.buffers_by_shape: dict[Any, Tensor] = {}

    def to_slot(self, name: str, plain: Tensor) -> Tensor:
        if name == "bias":
            return plain.unsqueeze(0)
        return plain.movedim((0, 1), (-1, -2)).reshape(-1, plain.shape[0]).contiguous()

    def from_slot(self, name: str, slot: Tensor) -> Tensor:
        if name == "bias":
            return slot.squeeze(0)
        outputs, channels, *sizes = self._shape
        return slot.reshape(*sizes, channels, outputs).movedim((-1, -2), (0, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        image = inputs.unsqueeze(2) if inputs.dim() == 3 else inputs
        height, width = self.result_size(image)
        weight, bias = self.stacked["weight"], self.stacked.get("bias")
        if torch.is_autocast_enabled(image.device.type):
            # Autograd functions are not covered by autocast: cast here, as a library's convolution would.
            dtype = torch.get_autocast_dtype(image.device.type)
            image, weight, bias = image.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        product = cast("Tensor", _Convolution.apply(image, weight, bias, self))  # type: ignore[no-untyped-call]
        result = product.view(-1, height, width, product.shape[-1]).permute(0, 3, 1, 2)
        return result.squeeze(2) if inputs.dim() == 3 else result

    def result_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width of the result."""
        sizes = zip(image.shape[2:], self.kernel, self.stride, self.dilation, self.padding, strict=True)
        return _pair(
            tuple((size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation, padding in sizes)
        )

    def taps(self, out: tuple[int, int]) -> Iterator[tuple[int, int, slice, slice]]:
        """(i, j, rows, columns): which rows and columns of the padded image element (i, j) of all windows lies on."""
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        for i in range(kh):
            for j in range(kw):
                yield i, j, slice(i * dh, i * dh + sh * (out[0] - 1) + 1, sh), slice(j * dw, j * dw + sw * (out[1] - 1) + 1, sw)

    def buffer(self, purpose: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory that every step reuses, zero at first: new pages cost more than the arithmetic on them."""
        key = (purpose, tuple(shape), like.dtype)
        if key not in self.buffers_by_shape:
            self.buffers_by_shape[key] = like.new_zeros(tuple(shape))
        return self.buffers_by_shape[key]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


class _Convolution(torch.autograd.Function):
    """Forward: unfold, multiply. Backward: multiply, fold. Windows are in the layer's buffers: one pass at a time."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, layer: StackedConv) -> Tensor:
        rows, channels, height, width = inputs.shape
        (kh, kw), (sh, sw), (dh, dw), (ph, pw) = layer.kernel, layer.stride, layer.dilation, layer.padding
        ctx.layer, ctx.sizes, ctx.out, ctx.has_bias = layer, inputs.shape, layer.result_size(inputs), bias is not None
        slots = 1 if layer.shares_input else layer.slots
        if kw * channels < MIN_RUN:
            padded = layer.buffer("padded", (channels, rows, height + 2 * ph, width + 2 * pw), inputs)
            padded[:, :, ph : ph + height, pw : pw + width] = inputs.transpose(0, 1)
            windows = layer.buffer("windows", (kh, kw, channels, rows, *ctx.out), inputs)
            for i, j, ys, xs in layer.taps(ctx.out):
                windows[i, j].copy_(padded[:, :, ys, xs])
            matrix = windows.view(kh * kw * channels, slots, -1).permute(1, 2, 0)
        else:
            padded = layer.buffer("padded", (rows, height + 2 * ph, width + 2 * pw, channels), inputs)
            padded[:, ph : ph + height, pw : pw + width] = inputs.permute(0, 2, 3, 1)
            n, y, x, c = padded.stride()
            windows = layer.buffer("windows", (rows, *ctx.out, kh, kw, channels), inputs)
            windows.copy_(padded.as_strided(windows.shape, (n, y * sh, x * sw, y * dh, x * dw, c)))
            matrix = windows.view(slots, -1, kh * kw * channels)
        matrix = matrix.expand(layer.slots, -1, -1)
        ctx.save_for_backward(weight)
        ctx.matrix = matrix
        return torch.bmm(matrix, weight) if bias is None else torch.baddbmm(bias, matrix, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (weight,), gradient = ctx.saved_tensors, gradients[0].contiguous()
        weight_gradient = torch.bmm(ctx.matrix.transpose(1, 2), gradient) if ctx.needs_input_grad[1] else None
        bias_gradient = gradient.sum(dim=1, keepdim=True) if ctx.has_bias and ctx.needs_input_grad[2] else None
        input_gradient = _fold(ctx, weight, gradient) if ctx.needs_input_grad[0] else None
        return input_gradient, weight_gradient, bias_gradient, None


def _fold(ctx: Any, weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the inputs: that of every window, added where the window lies."""
    layer: StackedConv = ctx.layer
    rows, channels, height, width = ctx.sizes
    (kh, kw), (ph, pw) = layer.kernel, layer.padding
    of_windows = layer.buffer("window gradients", (*gradient.shape[:2], kh * kw * channels), gradient)
    torch.bmm(gradient, weight.transpose(1, 2), out=of_windows)
    by_tap = of_windows.view(rows, *ctx.out, kh, kw, channels)
    padded = layer.buffer("padded gradient", (rows, height + 2 * ph, width + 2 * pw, channels), gradient).zero_()
    for i, j, ys, xs in layer.taps(ctx.out):
        padded[:, ys, xs].add_(by_tap[:, :, :, i, j])
    unpadded: Tensor = padded[:, ph : ph + height, pw : pw + width]
    return unpadded.permute(0, 3, 1, 2)


class StackedEmbedding(Stacked):
    """tokens (S B, ...) -> (S B, ..., D). One table (S V, D); with ``sparse`` its gradient holds the tokens' rows alone."""

    def __init__(self, plain: nn.Embedding, slots: int) -> None:
        super().__init__(plain, slots)
        table = self.stacked["weight"]
        # A leaf of two dimensions: autograd has no sparse gradient through a view.
        self.stacked["weight"] = table.detach().flatten(0, 1).requires_grad_(table.requires_grad)
        self.padding = plain.padding_idx
        self.sparse = False

    def by_slot(self, stacked: Tensor) -> Tensor:
        return stacked.detach().view(self.slots, -1, stacked.shape[1])

    def forward(self, tokens: Tensor) -> Tensor:
        table = self.stacked["weight"]
        if self.shares_input:
            tokens = tokens.expand(self.slots, *tokens.shape).flatten(0, 1)
        first = torch.arange(0, len(table), len(table) // self.slots, device=tokens.device)
        own = tokens + first.repeat_interleave(len(tokens) // self.slots).view(-1, *[1] * (tokens.dim() - 1))
        found = functional.embedding(own, table, sparse=self.sparse)
        if self.padding is None:
            return found
        # As in nn.Embedding, the vector of the padding token is looked up and takes no gradient.
        return torch.where((tokens == self.padding).unsqueeze(-1), found.detach(), found)


class StackedNorm(Stacked):
    """Layer and group normalisation. They stay within a sample, so only scale and shift belong to the slots."""

    def __init__(self, plain: nn.LayerNorm | nn.GroupNorm, slots: int) -> None:
        super().__init__(plain, slots)
        self.groups = plain.num_groups if isinstance(plain, nn.GroupNorm) else None
        self.shape = tuple(plain.normalized_shape) if isinstance(plain, nn.LayerNorm) else ()
        self.eps = plain.eps

    def forward(self, inputs: Tensor) -> Tensor:
        if self.groups is None:
            plain, after = functional.layer_norm(inputs, self.shape, eps=self.eps), 0
        else:
            plain, after = functional.group_norm(inputs, self.groups, eps=self.eps), inputs.dim() - 2
        by_slot = plain.reshape(self.slots, -1, *plain.shape[1:])
        for name, apply in (("weight", torch.mul), ("bias", torch.add)):
            if name in self.stacked:
                own = self.stacked[name]
                between = by_slot.dim() - own.dim() - after
                by_slot = apply(by_slot, own.reshape(self.slots, *[1] * between, *own.shape[1:], *[1] * after))
        return by_slot.reshape(inputs.shape)


def stack_layer(plain: nn.Module, slots: int) -> Stacked | None:
    """The stacked layer for ``slots`` layers like ``plain``; None where there is none."""
    # Exact types: a subclass may compute something else.
    if type(plain) is nn.Linear:
        return StackedLinear(plain, slots)
    if type(plain) in (nn.Conv1d, nn.Conv2d):
        convolution = cast("nn.Conv1d | nn.Conv2d", plain)
        supported = convolution.groups == 1 and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        return StackedConv(convolution, slots) if supported else None
    if type(plain) is nn.Embedding:
        return StackedEmbedding(plain, slots) if plain.max_norm is None and not plain.scale_grad_by_freq else None
    if type(plain) in (nn.LayerNorm, nn.GroupNorm):
        return StackedNorm(cast("nn.LayerNorm | nn.GroupNorm", plain), slots)
    return None
