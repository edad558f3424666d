"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import Optimizer


class SGD(Optimizer):
    """theta <- theta - eta v with v <- mu v + (g + lambda theta), as ``torch.optim.SGD`` with momentum mu and weight decay lambda."""

    def __init__(self, recipe: Recipe) -> None:
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        return {"momentum_buffer": shape} if self._momentum else {}

    @property
    def is_elementwise(self) -> bool:
        return True

    @property
    def accepts_sparse_gradients(self) -> bool:
        return not (self._momentum or self._weight_decay)

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient.is_sparse:
                # On a GPU the duplicates of a row are added in no fixed order unless they are summed first.
                summed = gradient if gradient.device.type == "cpu" else gradient.coalesce()
                parameter.add_(summed * -rate)
        dense = [index for index, gradient in enumerate(gradients) if not gradient.is_sparse]
        moving, steps = [parameters[index] for index in dense], [gradients[index] for index in dense]
        if not dense:
            return
        if self._weight_decay:
            steps = list(torch._foreach_add(steps, torch._foreach_mul(moving, self._weight_decay)))
        if self._momentum:
            buffers = [state[index]["momentum_buffer"] for index in dense]
            torch._foreach_mul_(buffers, self._momentum)
            torch._foreach_add_(buffers, steps)
            steps = buffers
        torch._foreach_add_(moving, torch._foreach_mul(steps, -rate))

    def identity_gap_reasons(self) -> list[str]:
        reasons = []
        if self._momentum:
            reasons.append(
                f"momentum {self._momentum:g}: each step repeats a share of the steps before it, so the parameters do not move by eta_t "
                "times the step's own gradient (Eq. 10, 14)"
            )
        if self._weight_decay:
            reasons.append(
                f"weight decay {self._weight_decay:g}: each step also shrinks the parameters, a change of f that belongs to no training "
                "sample"
            )
        return reasons

    @property
    def description(self) -> str:
        settings = {"momentum": self._momentum, "weight decay": self._weight_decay}
        extras = " and ".join(f"{name} {value:g}" for name, value in settings.items() if value)
        return f"SGD with {extras}" if extras else "plain SGD"
