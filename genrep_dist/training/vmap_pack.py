"""S models of one architecture, of whatever layers, by torch's own mapping of a forward pass over stacked parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.gradients.model import as_outputs
from genrep_dist.problems.protocol import Recipe

MAPPED_SLOTS = 32
"""Of a pack on a CPU, always: how torch computes what it maps may depend on how many there are, and then so would last bits. All
registers are full with so many."""


class MappedPack:
    """A module that applies ``slots`` models, each to its own rows: inputs (S B, ...) -> outputs (S B, C).

    As :class:`genrep_dist.training.pack.Pack`, for layers that are not known there; each call costs more.
    """

    def __init__(self, template: nn.Module, slots: int, recipe: Recipe) -> None:
        del recipe
        self.slots = slots
        self.stacked = {
            name: p.detach().new_zeros((slots, *p.shape)).requires_grad_(p.requires_grad) for name, p in template.named_parameters()
        }
        self.module: nn.Module = _Mapped(copy.deepcopy(template).train(), self.stacked, slots)
        self.parameters = [t for t in self.stacked.values() if t.requires_grad]

    def load(self, slot: int, model: nn.Module) -> None:
        """Put ``model`` into a slot."""
        with torch.no_grad():
            for name, stacked in self.stacked.items():
                stacked[slot] = model.get_parameter(name)

    def unload(self, slot: int, model: nn.Module) -> None:
        """Write a slot's parameters into ``model``."""
        with torch.no_grad():
            for name, stacked in self.stacked.items():
                model.get_parameter(name).copy_(stacked[slot])

    def of_slots(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors of the parameters' shapes with S as their first dimension, the same memory."""
        return [tensor.detach() for tensor in tensors]


class _Mapped(nn.Module):
    def __init__(self, template: nn.Module, stacked: dict[str, Tensor], slots: int) -> None:
        super().__init__()
        self.template, self.stacked, self.slots = template, stacked, slots

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(self.slots, -1, *inputs.shape[1:])
        # A model that draws random numbers fails here, and one that looks at numbers to decide what to compute. Of attention the fused
        # ways cannot be mapped.
        with sdpa_kernel(SDPBackend.MATH):
            outputs: Tensor = vmap(self._one, randomness="error")(self.stacked, rows)
        return outputs.flatten(0, 1)

    def _one(self, parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        return as_outputs(functional_call(self.template, parameters, (rows,)), len(rows))
