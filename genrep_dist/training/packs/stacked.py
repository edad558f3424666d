"""Models in stacked layers: the parameters of S models in one tensor, multiplied in batched products."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrep_dist.training.batches import Step
from genrep_dist.training.fast_layers import MIN_SPARSE_NUMBERS
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.optimizers.base import OptimizedParameters, Optimizer
from genrep_dist.training.packs.base import Pack
from genrep_dist.training.packs.stacked_layers import Stacked, StackedConv, StackedEmbedding, StackedLinear, stack_layer
from genrep_dist.training.packs.stateful_layers import SlotRows, StackedBatchNorm, Stateful, stack_stateful_layer


def stacked_layer(plain: nn.Module, slots: int) -> Stacked | None:
    """The layer of a stacked pack for ``slots`` layers like ``plain``; None where there is none."""
    return stack_layer(plain, slots) or stack_stateful_layer(plain, slots)


class StackedPack(Pack):
    """A copy of the template whose layers with parameters are replaced by stacked ones. A model has the same bits in packs of any size."""

    may_be_captured = True

    def __init__(self, template: nn.Module, slots: int, optimizer: Optimizer, fast_paths: FastPaths) -> None:
        self.slots = slots
        self._layers: dict[str, Stacked] = {}
        self._generators: list[torch.Generator] = []
        root = nn.ModuleDict({"model": copy.deepcopy(template)})
        for path, plain in list(root.named_modules()):
            own_path = path.removeprefix("model").removeprefix(".")
            layer = self._stack(own_path, plain)
            if layer is None:
                continue
            self._layers[own_path] = layer
            parent, _, name = path.rpartition(".")
            setattr(root.get_submodule(parent), name, layer) if parent else root.update({name: layer})
            if isinstance(layer, StackedEmbedding) and fast_paths.sparse_embeddings and optimizer.accepts_sparse_gradients:
                layer.sparse = layer.stacked["weight"].numel() >= slots * MIN_SPARSE_NUMBERS
        self.module = root["model"].train()
        # Those of a product, and sums over its rows.
        self._stateful = [layer for layer in self._layers.values() if isinstance(layer, Stateful)]
        self.owns_gradients = self._has_new_gradients(StackedLinear, StackedConv, StackedBatchNorm)
        stacked = ((path, layer, name, t) for path, layer in self._layers.items() for name, t in layer.stacked.items())
        trained = [(layer, t, f"{path}.{name}" if path else name) for path, layer, name, t in stacked if t.requires_grad]
        self.parameters = [t for _, t, _ in trained]
        by_slot, names = [layer.by_slot for layer, _, _ in trained], [name for _, _, name in trained]
        self.optimized = OptimizedParameters(optimizer, self.parameters, slots, by_slot, names)

    def _stack(self, path: str, plain: nn.Module) -> Stacked | None:
        """The stacked layer in the place ``path`` of ``plain``; None where there is none."""
        del path
        return stacked_layer(plain, self.slots)

    def _has_new_gradients(self, *kinds: type[Stacked]) -> bool:
        """Whether all layers with parameters are of ``kinds``."""
        return all(isinstance(layer, kinds) for layer in self._layers.values() if layer.stacked)

    def changing_tensors(self) -> list[Tensor]:
        return [*super().changing_tensors(), *(tensor for layer in self._stateful for tensor in layer.statistics.values())]

    def scratch_tensors(self) -> list[Tensor]:
        return [tensor for layer in self._layers.values() if isinstance(layer, StackedConv) for tensor in layer.buffers_by_shape.values()]

    def generators(self) -> Sequence[torch.Generator]:
        return self._generators

    def seed(self, seeds: Sequence[int]) -> None:
        # A slot's layers draw from one generator, as they do alone.
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds] if self._stateful else []
        for layer in self._stateful:
            layer.generators = self._generators

    def normalizing_layers(self) -> list[str]:
        return [f"{path} ({layer.title})" for path, layer in self._layers.items() if isinstance(layer, StackedBatchNorm)]

    def begin(self, step: Step) -> None:
        if self._stateful and step.counted is not None:
            rows = SlotRows(step.counted, step.counts)
            for layer in self._stateful:
                layer.rows = rows

    def load(self, slot: int, model: nn.Module) -> None:
        for path, layer in self._layers.items():
            layer.load(slot, model.get_submodule(path))

    def unload(self, slot: int, model: nn.Module) -> None:
        for path, layer in self._layers.items():
            layer.unload(slot, model.get_submodule(path))
