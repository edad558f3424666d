"""The protocol of an optimizer, and parameters with the optimizer state that belongs to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, cast

import torch
from torch import Tensor

from genrep_dist.core.gradients.model import as_real
from genrep_dist.errors import ProblemError
from genrep_dist.extension import Extension, require_returned
from genrep_dist.problems.protocol import Recipe

OPTIMIZER_SETTINGS = ("momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "amsgrad", "alpha", "centered")
"""The fields of a recipe that belong to some optimizers alone."""


class Optimizer(Extension, ABC):
    """An update rule with the settings of one recipe. It holds no tensors: its state is passed in.

    The same rule updates one model and S models that train together. For S models every parameter, gradient and state tensor has S as
    its first dimension, and a slot may hold a model's parameter transposed or reshaped, so models
    train together only under a rule that declares :attr:`is_elementwise`.
    Results are equal in packs of any size, bit for bit, if a rule rounds after each operation: use ``add`` and ``mul`` instead of
    ``add(alpha=...)``, ``addcmul`` or ``lerp``, which round differently at the end of a tensor.
    """

    settings: ClassVar[tuple[str, ...]] = OPTIMIZER_SETTINGS
    """The fields of a recipe that the rule takes; another one that is not at its default is refused. Default: the rule refuses itself."""

    takes_rate_tensors: ClassVar[bool] = False
    """Whether ``rate`` may be a float64 tensor () in place of a number: a captured step reads its rate from memory."""

    @abstractmethod
    def __init__(self, recipe: Recipe) -> None:
        """Take the settings from ``recipe``. Raises ProblemError for settings that this optimizer does not have."""

    @abstractmethod
    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        """One step at the learning rate ``rate``: change ``parameters`` and ``state`` in place.

        The lists have one entry per parameter. A gradient is sparse only where :attr:`accepts_sparse_gradients` holds and the parameter
        has no state; gradient and parameter then have the same two-dimensional shape.
        """

    def update_consuming(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        """:meth:`update` with gradients that no one reads afterwards, and of which no two share memory: it may write to them.

        The parameters get the same bits. Default: :meth:`update`.
        """
        self.update(parameters, gradients, state, rate)

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

    def preconditioner(self, parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        """D (shape of the parameter; of :func:`~genrep_dist.core.gradients.model.as_real` if it is complex) after the steps so far.

        With it the rule steps along gradient / D, apart from momentum. None: the rule has none. Default: none.
        """
        del parameter, state
        return None

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


def weight_decay_reasons(weight_decay: float) -> list[str]:
    """Why a ``weight_decay`` breaks the tracking identities; none for 0."""
    if not weight_decay:
        return []
    return [f"weight decay {weight_decay:g}: each step also shrinks the parameters, a change of f that belongs to no training sample"]


@dataclass(frozen=True, eq=False)
class Rule:
    """How some parameters are updated: an optimizer, and their learning rate relative to the recipe's."""

    optimizer: Optimizer
    relative_rate: float = 1.0


class GroupedOptimizer(Optimizer):
    """A rule with what belongs to a model as a whole: groups of parameters, by patterns of names, and the largest norm of the gradient."""

    def __init__(self, main: Optimizer, groups: Sequence[tuple[str, Rule]] = (), clip_norm: float | None = None) -> None:
        self._main, self._groups, self.clip_norm = Rule(main), groups, clip_norm

    @property
    def _optimizers(self) -> list[Optimizer]:
        return [self._main.optimizer, *(rule.optimizer for _, rule in self._groups)]

    def rules(self, names: Sequence[str] | None, count: int) -> list[Rule]:
        """The rule of each of ``count`` parameters: that of the first group whose pattern matches its name, or the main one.

        Raises ProblemError for a group that no name matches.
        """
        if names is None or not self._groups:
            return [self._main] * count
        own = [next((rule for pattern, rule in self._groups if fnmatchcase(name, pattern)), self._main) for name in names]
        for pattern, rule in self._groups:
            if rule not in own:
                matching = [name for name in names if fnmatchcase(name, pattern)]
                raise ProblemError(
                    "a parameter group has no parameters",
                    where=f"recipe.param_groups: {pattern!r}",
                    expected=f"a pattern that matches some of {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
                    got=f"{', '.join(matching[:3])}, of an earlier group" if matching else "no trained parameter of that name",
                    remedy="correct the pattern: * stands for any text, as in '*.bias'",
                )
        return own

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        self._main.optimizer.update(parameters, gradients, state, rate)

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return self._main.optimizer.state_shapes(shape)

    @property
    def is_elementwise(self) -> bool:
        # The norm of a model's gradient is taken before its rules see it.
        return all(optimizer.is_elementwise for optimizer in self._optimizers)

    @property
    def accepts_sparse_gradients(self) -> bool:
        return self.clip_norm is None and all(optimizer.accepts_sparse_gradients for optimizer in self._optimizers)

    def preconditioner(self, parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        return self._main.optimizer.preconditioner(parameter, state)

    def identity_gap_reasons(self) -> list[str]:
        reasons = [reason for optimizer in self._optimizers for reason in optimizer.identity_gap_reasons()]
        if any(rule.relative_rate != 1 for _, rule in self._groups):
            reasons.append("parameter groups with rates of their own: the parameters do not all move by the same eta_t (Eq. 10)")
        if self.clip_norm is not None:
            reasons.append(f"gradients clipped to norm {self.clip_norm:g}: a clipped step is not eta_t times its gradient (Eq. 10)")
        return list(dict.fromkeys(reasons))

    @property
    def description(self) -> str:
        groups = f"{len(self._groups)} parameter group{'s' if len(self._groups) > 1 else ''}" if self._groups else ""
        clipped = f"gradients clipped to norm {self.clip_norm:g}" if self.clip_norm is not None else ""
        return ", ".join(filter(None, (self._main.optimizer.description, groups, clipped)))


def clipped_by_norm(gradients: Sequence[Tensor], most: float, slots: int | None) -> list[Tensor]:
    """``gradients`` times min(1, ``most`` / norm), as ``torch.nn.utils.clip_grad_norm_``; of each of ``slots`` models by its own norm.

    Norms are taken slot by slot and added in the order of the parameters, so that they do not depend on how many slots there are.
    """
    models = [[gradient] for gradient in gradients] if slots is None else [list(gradient.unbind(0)) for gradient in gradients]
    by_model = list(zip(*models, strict=True))
    norms = torch._foreach_norm([part.contiguous() for model in by_model for part in model])
    squares = torch.stack(norms).view(len(by_model), len(gradients)).square()
    total = squares[:, 0].clone()
    for column in squares.unbind(1)[1:]:
        total += column
    factors = (most / (total.sqrt() + 1e-6)).clamp(max=1.0)  # torch's formula
    return [gradient * per_model(factors[0] if slots is None else factors, gradient) for gradient in gradients]


def _state_shapes(optimizer: Optimizer, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    found: object = optimizer.state_shapes(shape)
    shapes = found.values() if isinstance(found, Mapping) else [None]
    fits = all(isinstance(one, tuple) and all(isinstance(size, int) for size in one) for one in shapes)
    require_returned(fits, optimizer, "state_shapes", "shapes, tuples of int, by name", found)
    return cast("Mapping[str, tuple[int, ...]]", found)


class OptimizedParameters:
    """Parameters and their optimizer state, of one model (``slots`` None) or of ``slots`` models at once.

    ``parameters`` are what autograd differentiates; ``names`` are theirs in the model, for parameter groups. ``by_slot`` views a tensor of
    a parameter's shape with the S models as its first dimension, the same memory; one function per parameter, none for one model.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        slots: int | None = None,
        by_slot: Sequence[Callable[[Tensor], Tensor]] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._optimizer, self._leaves, self._slots = optimizer, [p.detach() for p in parameters], slots
        self._by_slot = by_slot or [lambda tensor: tensor] * len(self._leaves)
        self.views = [view(leaf) for view, leaf in zip(self._by_slot, self._leaves, strict=True)]
        grouped = optimizer if isinstance(optimizer, GroupedOptimizer) else GroupedOptimizer(optimizer)
        self._clip_norm, self._rules = grouped.clip_norm, grouped.rules(names, len(self._leaves))
        self.state = [self._initial_state(rule.optimizer, view, slots) for rule, view in zip(self._rules, self.views, strict=True)]

    def _initial_state(self, optimizer: Optimizer, parameter: Tensor, slots: int | None) -> dict[str, Tensor]:
        own, first = (tuple(parameter.shape), ()) if slots is None else (tuple(parameter.shape[1:]), (slots,))
        wide = torch.promote_types(parameter.dtype, torch.float32).to_real()
        return {
            name: torch.zeros_like(parameter) if shape == own else torch.zeros((*first, *shape), dtype=wide, device=parameter.device)
            for name, shape in _state_shapes(optimizer, own).items()
        }

    @property
    def takes_rate_tensors(self) -> bool:
        """Whether the rate of a step may be a tensor."""
        return all(rule.optimizer.takes_rate_tensors for rule in self._rules)

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step changes, with S as the first dimension."""
        return [*self.views, *(tensor for state in self.state for tensor in state.values())]

    @torch.no_grad()
    def step(
        self, gradients: Sequence[Tensor | None], rate: float | Tensor, idle_slots: Sequence[int] = (), *, consume: bool = False
    ) -> None:
        """One step. A parameter whose gradient is None took no part and stays; so do all parameters and state of ``idle_slots``.

        ``rate``: also a float64 tensor (), where :attr:`takes_rate_tensors` holds. ``consume``: the rule may write to the gradients.
        """
        # An element without a gradient stays by itself where sparse gradients are accepted.
        restored = [] if self._optimizer.accepts_sparse_gradients or not idle_slots else self.tensors
        before = [tensor[list(idle_slots)] for tensor in restored]
        moving = []
        by_parameter = zip(self._rules, self._leaves, self.views, self._by_slot, self.state, gradients, strict=True)
        for rule, leaf, view, by_slot, state, gradient in by_parameter:
            if gradient is not None and gradient.is_sparse and self._optimizer.accepts_sparse_gradients and not state:
                moving.append((rule, leaf, gradient, state))
            elif gradient is not None:
                moving.append((rule, view, by_slot(gradient.to_dense() if gradient.is_sparse else gradient), state))
        if moving and self._clip_norm is not None:
            clipped = clipped_by_norm([gradient for _, _, gradient, _ in moving], self._clip_norm, self._slots)
            moving = [(rule, view, gradient, state) for (rule, view, _, state), gradient in zip(moving, clipped, strict=True)]
        for rule in dict.fromkeys(rule for rule, *_ in moving):
            parameters, along, states = (list(part) for part in zip(*(rest for own, *rest in moving if own is rule), strict=True))
            update = rule.optimizer.update_consuming if consume else rule.optimizer.update
            # A tensor only where the rule declares that it takes one.
            update(parameters, along, states, cast("float", rate * rule.relative_rate))
        for tensor, values in zip(restored, before, strict=True):
            tensor[list(idle_slots)] = values

    @torch.no_grad()
    def preconditioners(self) -> list[Tensor]:
        """The optimizer's D of each parameter, complex as the parameter, of one model or with S models as the first dimension.

        Raises ProblemError for an optimizer that has none.
        """
        found = []
        for rule, view, state in zip(self._rules, self.views, self.state, strict=True):
            value: object = rule.optimizer.preconditioner(view, state)
            expected = f"a finite positive tensor of shape {tuple(as_real(view).shape)}"
            fits = isinstance(value, Tensor) and value.shape == as_real(view).shape
            require_returned(fits, rule.optimizer, "preconditioner", expected, value)
            # Along gradient / D at the recipe's rate, whatever the rate of the parameter's group.
            values = cast("Tensor", value) / rule.relative_rate
            found.append(torch.view_as_complex(values.contiguous()) if view.is_complex() else values)
        return found

    def zero_slot(self, slot: int) -> None:
        """Set a slot's parameters and state to zero: its model has diverged, and must not disturb the others."""
        for tensor in self.tensors:
            tensor[slot] = 0
