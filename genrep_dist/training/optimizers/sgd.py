"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import Optimizer, per_model, weight_decay_reasons


class SGD(Optimizer):
    """theta <- theta - eta v with v <- mu v + (g + lambda theta), as ``torch.optim.SGD`` with momentum mu and weight decay lambda."""

    settings = ("momentum", "dampening", "nesterov", "weight_decay")
    takes_rate_tensors = True

    def __init__(self, recipe: Recipe) -> None:
        self._momentum, self._weight_decay = recipe.momentum, recipe.weight_decay
        self._dampening, self._nesterov = recipe.dampening, recipe.nesterov

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        if not self._momentum:
            return {}
        return {"momentum_buffer": shape, **({"is_started": ()} if self._dampening else {})}

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
            torch._foreach_add_(buffers, self._dampened(steps, [state[index] for index in dense]) if self._dampening else steps)
            # nesterov looks ahead along the new buffer.
            steps = list(torch._foreach_add(steps, torch._foreach_mul(buffers, self._momentum))) if self._nesterov else buffers
        torch._foreach_add_(moving, torch._foreach_mul(steps, -rate))

    def update_consuming(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        is_plain = type(self).update is SGD.update and not (self._momentum or self._weight_decay)
        if not is_plain or any(gradient.is_sparse for gradient in gradients):
            self.update(parameters, gradients, state, rate)
            return
        # Without a third tensor of their size, which a large pack would have to fetch from memory.
        torch._foreach_mul_(gradients, -rate)
        torch._foreach_add_(parameters, gradients)

    def _dampened(self, steps: list[Tensor], state: list[dict[str, Tensor]]) -> list[Tensor]:
        """(1 - dampening) times ``steps``, but the whole of a model's first one, as torch's rule has it."""
        dampened = [
            step * per_model(1 - one["is_started"] * self._dampening, step).to(step.dtype) for step, one in zip(steps, state, strict=True)
        ]
        for one in state:
            one["is_started"].fill_(1)
        return dampened

    def identity_gap_reasons(self) -> list[str]:
        reasons = []
        if self._momentum:
            reasons.append(
                f"momentum {self._momentum:g}: each step repeats a share of the steps before it, so the parameters do not move by eta_t "
                "times the step's own gradient (Eq. 10, 14)"
            )
        return reasons + weight_decay_reasons(self._weight_decay)

    @property
    def description(self) -> str:
        momentum = "Nesterov momentum" if self._nesterov else "momentum"
        settings = {momentum: self._momentum, "dampening": self._dampening, "weight decay": self._weight_decay}
        extras = " and ".join(f"{name} {value:g}" for name, value in settings.items() if value)
        return f"SGD with {extras}" if extras else "plain SGD"
