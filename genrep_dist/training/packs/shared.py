"""Stacked models that visit the same batches, as retrainings with common random numbers do: they read each batch once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from genrep_dist.training.batches import Step, packed_steps
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.optimizers.base import Optimizer
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.packs.stacked_layers import Stacked, StackedConv, StackedLinear, stack_layer
from genrep_dist.training.packs.stateful_layers import StackedBatchNorm, is_stateful

SHARING_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
NARROW = 16
"""Outputs of a linear layer below which the products of several slots are one: BLAS computes so few columns at a fraction of its rate."""
NARROW_INPUTS = 64
"""Inputs of a narrow layer from which this pays."""
BLOCK_SLOTS, BLOCK_COLUMNS, VECTOR = 8, 64, 16
"""Slots of a product in a narrow layer are a multiple of the first, their columns at least the second, and a multiple of the third: of the
numbers in a vector register, so that all columns are computed by the same instructions."""


class SharedPack(StackedPack):
    """A stacked pack of runs with one order. Layers that see the batch itself take it once for all slots.

    Rows that a run does not keep are read, with gradient zero. An Inf or NaN that they lead to is not zero and reaches the parameters of
    the run: who trains such a pack must repeat that run in a stacked one, which reads no row that is not kept.
    """

    def __init__(self, template: nn.Module, slots: int, optimizer: Optimizer, fast_paths: FastPaths) -> None:
        self._sharing = sharing_layers(template) or []
        super().__init__(template, slots, optimizer, fast_paths)
        self.owns_gradients = self._has_new_gradients(NarrowLinear, StackedLinear, StackedConv, StackedBatchNorm)
        self.has_narrow_products = any(isinstance(layer, NarrowLinear) for layer in self._layers.values())

    def _stack(self, path: str, plain: nn.Module) -> Stacked | None:
        if path not in self._sharing:
            return super()._stack(path, plain)
        layer = NarrowLinear(plain, self.slots) if is_narrow(plain) else stack_layer(plain, self.slots)
        if layer is not None:
            layer.shares_input = True
        return layer

    def steps(self, orders: Tensor, batch_size: int, kept: Tensor, first_step: int, weights: Tensor | None = None) -> Iterator[Step]:
        return packed_steps(orders, batch_size, kept, first_step, weights, shared=True)

    def rows_read(self, step: Step) -> Tensor:
        return step.rows[:1]


class NarrowLinear(Stacked):
    """x (B, ..., in) -> (S B, ..., out) of slots that share the input, in products of a fixed number of slots, some of them empty.

    Weights (in, S' out), biases (S' out), with S' the slots of whole products. A slot has the same bits wherever in a product it is.
    """

    shares_input = True

    def __init__(self, plain: nn.Module, slots: int) -> None:
        super().__init__(plain, slots)
        assert isinstance(plain, nn.Linear)
        self.outputs = plain.out_features
        sizes = itertools.count(BLOCK_SLOTS, BLOCK_SLOTS)
        self.block = next(size for size in sizes if size * self.outputs >= BLOCK_COLUMNS and size * self.outputs % VECTOR == 0)
        self.blocks = -(-slots // self.block)
        for name, of_slots in self.stacked.items():
            wide = of_slots.new_zeros(*of_slots.shape[1:-1], self.blocks * self.block * self.outputs)
            self.stacked[name] = wide.requires_grad_(of_slots.requires_grad)

    def to_slot(self, name: str, plain: Tensor) -> Tensor:
        return plain.t() if name == "weight" else plain

    def from_slot(self, name: str, slot: Tensor) -> Tensor:
        return slot.t() if name == "weight" else slot

    def by_slot(self, stacked: Tensor) -> Tensor:
        return self.slots_of(stacked.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        weight, bias = self.stacked["weight"], self.stacked.get("bias")
        rows = inputs.reshape(-1, inputs.shape[-1])
        if torch.is_autocast_enabled(rows.device.type):
            # Autograd functions are not covered by autocast.
            dtype = torch.get_autocast_dtype(rows.device.type)
            rows, weight, bias = rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        product = cast("Tensor", _NarrowProduct.apply(rows, weight, bias, self))  # type: ignore[no-untyped-call]
        return product.reshape(-1, *inputs.shape[1:-1], self.outputs)

    def columns(self, wide: Tensor) -> Iterator[Tensor]:
        """The columns of each product in a tensor (..., S' out)."""
        return iter(torch.split(wide, self.block * self.outputs, dim=-1))

    def slots_of(self, wide: Tensor) -> Tensor:
        """A tensor (..., S' out) as (S, ..., out), the same memory."""
        return wide.view(*wide.shape[:-1], -1, self.outputs).movedim(-2, 0)[: self.slots]


class _NarrowProduct(torch.autograd.Function):
    """rows (R, in) -> (S, R, out). The products have the same shapes whatever the number of slots."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, layer: NarrowLinear) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.layer, ctx.like = layer, weight
        product = rows.new_empty(len(rows), weight.shape[1])
        for index, (columns, own) in enumerate(zip(layer.columns(product), layer.columns(weight), strict=True)):
            if bias is None:
                torch.mm(rows, own, out=columns)
            else:
                torch.addmm(bias[index * own.shape[1] : (index + 1) * own.shape[1]], rows, own, out=columns)
        # In one piece for any number of slots: what follows has other last bits on rows that are apart in memory.
        return layer.slots_of(product).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        (rows,), layer, gradient = ctx.saved_tensors, ctx.layer, gradients[0]
        shape = len(rows), ctx.like.shape[1]
        wide = rows.new_empty(shape) if layer.slots == layer.blocks * layer.block else rows.new_zeros(shape)
        layer.slots_of(wide).copy_(gradient)
        weight_gradient = torch.empty_like(ctx.like) if ctx.needs_input_grad[1] else None
        if weight_gradient is not None:
            for columns, own in zip(layer.columns(weight_gradient), layer.columns(wide), strict=True):
                torch.mm(rows.t(), own, out=columns)
        bias_gradient = None
        if ctx.needs_input_grad[2]:
            # Slot by slot: a sum over rows has other last bits in the last columns of a matrix.
            bias_gradient = rows.new_zeros(shape[1])
            layer.slots_of(bias_gradient).copy_(gradient.contiguous().sum(dim=1))
        return None, weight_gradient, bias_gradient, None


def is_narrow(layer: nn.Module) -> bool:
    """Whether a layer that sees the batch itself is computed in products of several slots."""
    return type(layer) is nn.Linear and layer.out_features < NARROW and layer.in_features >= NARROW_INPUTS


def sharing_layers(model: nn.Module) -> list[str] | None:
    """Paths of the layers that see the batch itself; None if something else than these layers takes numbers from it.

    The model is one whose forward pass ``torch.fx`` can trace.
    """
    if isinstance(model, SHARING_LAYERS):
        return [""]
    graph, found = fx.Tracer().trace(model), list[str]()
    from_batch = {node for node in graph.nodes if node.op == "placeholder"}
    for node in graph.nodes:
        sources = from_batch.intersection(node.all_input_nodes)
        if not sources:
            continue
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and is_stateful(module):
            return None
        if module is not None and next(module.parameters(), None) is not None:
            if not isinstance(module, SHARING_LAYERS):
                return None
            found.append(str(node.target))
        elif node.op == "output" or len(sources) < len(node.all_input_nodes):
            return None
        else:
            from_batch.add(node)
    return found or None
