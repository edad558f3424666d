"""The protocol of an optimizer, and parameters with the optimizer state that belongs to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from genrep_dist.extension import Extension, require_returned
from genrep_dist.problems.protocol import Recipe


class Optimizer(Extension, ABC):
    """An update rule with the settings of one recipe. It holds no tensors: its state is passed in.

    The same rule updates one model and S models that train together. For S models every parameter, gradient and state tensor has S as
    its first dimension, and a slot may hold a model's parameter transposed or reshaped, so models
    train together only under a rule that declares :attr:`is_elementwise`.
    Results are equal in packs of any size, bit for bit, if a rule rounds after each operation: use ``add`` and ``mul`` instead of
    ``add(alpha=...)``, ``addcmul`` or ``lerp``, which round differently at the end of a tensor.
    """

    @abstractmethod
    def __init__(self, recipe: Recipe) -> None:
        """Take the settings from ``recipe``. Raises ProblemError for settings that this optimizer does not have."""

    @abstractmethod
    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        """One step at the learning rate ``rate``: change ``parameters`` and ``state`` in place.

        The lists have one entry per parameter. A gradient is sparse only where :attr:`accepts_sparse_gradients` holds and the parameter
        has no state; gradient and parameter then have the same two-dimensional shape.
        """

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        """Shapes, by name, of the state that one model keeps for a parameter of ``shape``. ``()`` is one number per parameter and model.

        State begins as zeros. A tensor of the parameter's shape has its dtype; any other has at least float32. Default: no state.
        """
        del shape
        return {}

    @property
    def is_elementwise(self) -> bool:
        """Whether a new element of a parameter depends on the same element of parameter, gradient and state alone.

        Gradient clipping by norm, for example, does not. Under a rule that is not elementwise, models train one by one.
        """
        return False

    @property
    def accepts_sparse_gradients(self) -> bool:
        """Whether an element with gradient zero stays where it is, so that gradients may be sparse."""
        return False

    @abstractmethod
    def identity_gap_reasons(self) -> list[str]:
        """Why the tracking identities (Eq. 8, 10; TracInCP) do not hold under this rule, one sentence each without a period; [] if they do.

        They hold where each step subtracts ``rate`` times the gradient of the batch mean from the parameters, and nothing else.
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """The rule with its settings in a few words, for reports: "SGD with momentum 0.9"."""


def per_model(state: Tensor, parameter: Tensor) -> Tensor:
    """``state`` of declared shape ``()``, one number per model, broadcastable to ``parameter``: () or (S,) -> (1, ...) or (S, 1, ...)."""
    return state.reshape(*state.shape, *[1] * (parameter.dim() - state.dim()))


class OptimizedParameters:
    """Parameters and their optimizer state, of one model (``slots`` None) or of ``slots`` models at once.

    ``parameters`` are what autograd differentiates. ``by_slot`` views a tensor of a parameter's shape with the S models as its first
    dimension, the same memory; one function per parameter, none for one model.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        slots: int | None = None,
        by_slot: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        self._optimizer, self._leaves = optimizer, [p.detach() for p in parameters]
        self._by_slot = by_slot or [lambda tensor: tensor] * len(self._leaves)
        self._views = [view(leaf) for view, leaf in zip(self._by_slot, self._leaves, strict=True)]
        self.state = [self._initial_state(view, slots) for view in self._views]

    def _initial_state(self, parameter: Tensor, slots: int | None) -> dict[str, Tensor]:
        own, first = (tuple(parameter.shape), ()) if slots is None else (tuple(parameter.shape[1:]), (slots,))
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return {
            name: torch.zeros_like(parameter) if shape == own else torch.zeros((*first, *shape), dtype=wide, device=parameter.device)
            for name, shape in self._state_shapes(own).items()
        }

    def _state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        found: object = self._optimizer.state_shapes(shape)
        shapes = found.values() if isinstance(found, Mapping) else [None]
        fits = all(isinstance(one, tuple) and all(isinstance(size, int) for size in one) for one in shapes)
        require_returned(fits, self._optimizer, "state_shapes", "shapes, tuples of int, by name", found)
        return cast("Mapping[str, tuple[int, ...]]", found)

    @property
    def _tensors(self) -> list[Tensor]:
        """All that a step changes, with S as the first dimension."""
        return [*self._views, *(tensor for state in self.state for tensor in state.values())]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rate: float, idle_slots: Sequence[int] = ()) -> None:
        """One step. A parameter whose gradient is None took no part and stays; so do all parameters and state of ``idle_slots``."""
        # An element without a gradient stays by itself where sparse gradients are accepted.
        restored = [] if self._optimizer.accepts_sparse_gradients or not idle_slots else self._tensors
        before = [tensor[list(idle_slots)] for tensor in restored]
        moving = []
        for leaf, view, by_slot, state, gradient in zip(self._leaves, self._views, self._by_slot, self.state, gradients, strict=True):
            if gradient is not None and gradient.is_sparse and self._optimizer.accepts_sparse_gradients and not state:
                moving.append((leaf, gradient, state))
            elif gradient is not None:
                moving.append((view, by_slot(gradient.to_dense() if gradient.is_sparse else gradient), state))
        if moving:
            parameters, along, states = (list(part) for part in zip(*moving, strict=True))
            self._optimizer.update(parameters, along, states, rate)
        for tensor, values in zip(restored, before, strict=True):
            tensor[list(idle_slots)] = values

    def zero_slot(self, slot: int) -> None:
        """Set a slot's parameters and state to zero: its model has diverged, and must not disturb the others."""
        for tensor in self._tensors:
            tensor[slot] = 0
