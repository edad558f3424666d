"""RMSprop (Tieleman and Hinton 2012)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genrep_dist.core.gradients.model import as_real
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import Optimizer, weight_decay_reasons


class RMSprop(Optimizer):
    """theta <- theta - eta g / (sqrt(v) + eps) with v <- alpha v + (1 - alpha) g^2, as ``torch.optim.RMSprop``."""

    settings = ("alpha", "eps", "centered", "momentum", "weight_decay")
    takes_rate_tensors = True

    def __init__(self, recipe: Recipe) -> None:
        self._alpha, self._eps, self._centered = recipe.alpha, recipe.eps, recipe.centered
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        optional = {"grad_avg": self._centered, "momentum_buffer": bool(self._momentum)}
        return {"square_avg": shape, **{name: shape for name, used in optional.items() if used}}

    @property
    def is_elementwise(self) -> bool:
        return True

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        moving, along = [as_real(p) for p in parameters], [as_real(g) for g in gradients]
        if self._weight_decay:
            along = list(torch._foreach_add(along, torch._foreach_mul(moving, self._weight_decay)))
        for name, new in (("square_avg", torch._foreach_mul(along, along)), ("grad_avg", along)):
            if name in state[0]:
                averages = [as_real(one[name]) for one in state]
                torch._foreach_mul_(averages, self._alpha)
                torch._foreach_add_(averages, torch._foreach_mul(new, 1 - self._alpha))
        denominators = self._denominators(state)
        steps = list(torch._foreach_div(along, denominators))
        if self._momentum:
            buffers = [as_real(one["momentum_buffer"]) for one in state]
            torch._foreach_mul_(buffers, self._momentum)
            torch._foreach_add_(buffers, steps)
            steps = buffers
        torch._foreach_add_(moving, torch._foreach_mul(steps, -rate))

    def _denominators(self, state: list[dict[str, Tensor]]) -> list[Tensor]:
        """sqrt(v) + eps, with v the variance if the rule is centered."""
        squares = [as_real(one["square_avg"]) for one in state]
        if self._centered:
            means = [as_real(one["grad_avg"]) for one in state]
            # A variance of zero may be rounded to less than zero, whose root torch's rule takes.
            squares = [value.clamp(min=0) for value in torch._foreach_sub(squares, torch._foreach_mul(means, means))]
        roots = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(roots, self._eps)
        return roots

    def preconditioner(self, parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """sqrt(v) + eps."""
        del parameter
        return self._denominators([dict(state)])[0]

    def identity_gap_reasons(self) -> list[str]:
        reasons = ["RMSprop divides each element of a step by the root of its mean square, so the steps are not along the gradients"]
        if self._momentum:
            reasons.append(f"momentum {self._momentum:g}: each step repeats a share of the steps before it")
        return reasons + weight_decay_reasons(self._weight_decay)

    @property
    def description(self) -> str:
        settings = {"alpha": self._alpha, "momentum": self._momentum, "weight decay": self._weight_decay}
        extras = " and ".join(f"{name} {value:g}" for name, value in settings.items() if value)
        name = "centered RMSprop" if self._centered else "RMSprop"
        return f"{name} with {extras}" if extras else name
