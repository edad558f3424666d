"""Models of any layers: ``torch.func.vmap`` of a forward pass over stacked parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.gradients.functional import functional_model
from genrep_dist.core.gradients.model import as_outputs
from genrep_dist.core.inputs import InputForm, form_of, input_leaves
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.optimizers.base import OptimizedParameters, Optimizer
from genrep_dist.training.packs.base import Pack

MAPPED_SLOTS = 32
"""Slots of every mapped pack on a CPU: how torch computes what it maps may depend on the number of slots, and with it the last bits.
With 32, all vector registers are full."""


class MappedPack(Pack):
    """For layers that have no stacked counterpart. Each call costs more than a stacked one."""

    may_be_captured = True

    def __init__(self, template: nn.Module, slots: int, optimizer: Optimizer, fast_paths: FastPaths) -> None:
        del fast_paths
        self.slots = slots
        self._stacked = {
            name: p.detach().new_zeros((slots, *p.shape)).requires_grad_(p.requires_grad) for name, p in template.named_parameters()
        }
        self.module = _Mapped(copy.deepcopy(template).train(), self._stacked, slots)
        trained = {name: t for name, t in self._stacked.items() if t.requires_grad}
        self.parameters = list(trained.values())
        self.optimized = OptimizedParameters(optimizer, self.parameters, slots, names=list(trained))

    def load(self, slot: int, model: nn.Module) -> None:
        with torch.no_grad():
            for name, stacked in self._stacked.items():
                stacked[slot] = model.get_parameter(name)

    def unload(self, slot: int, model: nn.Module) -> None:
        with torch.no_grad():
            for name, stacked in self._stacked.items():
                model.get_parameter(name).copy_(stacked[slot])


class _Mapped(nn.Module):
    def __init__(self, template: nn.Module, stacked: dict[str, Tensor], slots: int) -> None:
        super().__init__()
        self.template, self.stacked, self.slots = template, stacked, slots
        self._call = functional_model(template)
        self._form: InputForm | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        rows = [leaf.reshape(self.slots, -1, *leaf.shape[1:]) for leaf in input_leaves(inputs)]
        self._form = form_of(inputs)
        # A model that draws random numbers fails here, as does one with data-dependent control flow. Fused attention cannot be mapped.
        with sdpa_kernel(SDPBackend.MATH):
            outputs: Tensor = vmap(self._one, randomness="error")(self.stacked, rows)
        return outputs.flatten(0, 1)

    def _one(self, parameters: dict[str, Tensor], rows: list[Tensor]) -> Tensor:
        return as_outputs(self._call(parameters, rows, self._form), len(rows[0]))
