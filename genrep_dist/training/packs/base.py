"""What the loop trains: S models of one architecture, one after the other's rows in a batch. One model is the case S = 1."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from genrep_dist.training.batches import Step, packed_steps, plain_steps
from genrep_dist.training.fast_layers import fast_layers
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.optimizers.base import OptimizedParameters, Optimizer


class Pack(ABC):
    """``slots`` models of one architecture that take their steps together.

    ``module`` maps inputs, those of the rows that :meth:`rows_read` gives, one slot's after the other's, to outputs (S B, C).
    ``parameters`` are the tensors that autograd differentiates, ``optimized`` the same with their optimizer state.
    """

    slots: int
    module: nn.Module
    parameters: list[Tensor]
    optimized: OptimizedParameters
    owns_gradients = False
    """Whether the gradients of ``parameters`` are new tensors in every step, of which no two share memory."""
    has_narrow_products = False
    """Whether last bits are those of narrow products, so that nothing else need keep its own."""

    may_be_captured = False
    """Whether a step is a function of its tensors and of nothing that the model keeps in Python, as far as a trial can tell."""

    @abstractmethod
    def __init__(self, template: nn.Module, slots: int, optimizer: Optimizer, fast_paths: FastPaths) -> None:
        """A pack of models like ``template``; their parameters are zero until :meth:`load`."""

    @abstractmethod
    def load(self, slot: int, model: nn.Module) -> None:
        """Copy the parameters of ``model`` into a slot."""

    @abstractmethod
    def unload(self, slot: int, model: nn.Module) -> None:
        """Copy a slot's parameters into ``model``."""

    def changing_tensors(self) -> list[Tensor]:
        """All that training changes, as memory of the pack: parameters, optimizer state and buffers."""
        return self.optimized.tensors

    def scratch_tensors(self) -> list[Tensor]:
        """Memory that each step overwrites and no later step reads."""
        return []

    def generators(self) -> Sequence[torch.Generator]:
        """What the layers of the slots draw from, apart from the default generators."""
        return ()

    def seed(self, seeds: Sequence[int]) -> None:
        """Before the first step: what the layers of a slot draw follows from its seed. A single model draws from the default generators."""
        del seeds

    def normalizing_layers(self) -> list[str]:
        """Names and types, for error messages, of layers that need more than one row."""
        return [f"{name} ({type(module).__name__})" for name, module in self.module.named_modules() if hasattr(module, "running_mean")]

    def begin(self, step: Step) -> None:
        """Before the forward pass of a step."""
        del step

    @torch.no_grad()
    def preconditioner(self, slot: int, model: nn.Module) -> list[Tensor]:
        """The optimizer's preconditioner of a slot, one tensor for each trained parameter of ``model``, which is like the template.

        Raises ProblemError for an optimizer that has none.
        """
        receiver, values = copy.deepcopy(model), self.optimized.preconditioners()
        before = [view.clone() for view in self.optimized.views]
        # By way of the parameters, whose layout in a slot is known to the layers alone.
        for view, value in zip(self.optimized.views, values, strict=True):
            view.copy_(value)
        self.unload(slot, receiver)
        for view, value in zip(self.optimized.views, before, strict=True):
            view.copy_(value)
        return [p.detach() for p in receiver.parameters() if p.requires_grad]

    def steps(self, orders: Tensor, batch_size: int, kept: Tensor, first_step: int, weights: Tensor | None = None) -> Iterator[Step]:
        """The steps of an epoch in which each model visits its ``orders`` (S, N) without the rows that ``kept`` (S, N) bool drops.

        ``weights`` (S, N) float64 of the rows in the loss; None: all are 1.
        """
        return packed_steps(orders, batch_size, kept, first_step, weights)

    def rows_read(self, step: Step) -> Tensor:
        """Positions (S, B) in the training set of the rows that ``module`` reads; (1, B) where all models read the same."""
        return step.rows

    def while_training(self) -> AbstractContextManager[None]:
        """What is in force while the models train."""
        return nullcontext()


class Solo(Pack):
    """One model, trained in place through its own layers."""

    def __init__(self, template: nn.Module, slots: int, optimizer: Optimizer, fast_paths: FastPaths) -> None:
        assert slots == 1, slots
        self.slots, self.module = slots, template
        trained = {name: p for name, p in template.named_parameters() if p.requires_grad}
        self.parameters: list[Tensor] = list(trained.values())
        self.optimized = OptimizedParameters(optimizer, self.parameters, names=list(trained))
        self._optimizer, self._fast_paths = optimizer, fast_paths

    def load(self, slot: int, model: nn.Module) -> None:
        assert model is self.module

    def unload(self, slot: int, model: nn.Module) -> None:
        assert model is self.module

    def changing_tensors(self) -> list[Tensor]:
        # A forward pass may change buffers, and parameters that are not trained, such as those of a moving average.
        others = [p.detach() for p in self.module.parameters() if not p.requires_grad]
        return [*self.optimized.tensors, *others, *self.module.buffers()]

    def preconditioner(self, slot: int, model: nn.Module) -> list[Tensor]:
        return self.optimized.preconditioners()

    def steps(self, orders: Tensor, batch_size: int, kept: Tensor, first_step: int, weights: Tensor | None = None) -> Iterator[Step]:
        own = None if weights is None else weights[0]
        return plain_steps(orders[0], batch_size, None if bool(torch.all(kept)) else kept[0], first_step, own)

    def while_training(self) -> AbstractContextManager[None]:
        return fast_layers(self.module, self._optimizer, self._fast_paths)
