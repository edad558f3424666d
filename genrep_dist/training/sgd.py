"""One step of SGD on many parameters at once, and embeddings whose step costs what their tokens cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Recipe

MIN_SPARSE_NUMBERS = 2**16
"""Tables with fewer numbers take dense gradients: writing a whole small one is cheaper than keeping book of its rows."""


class Descent:
    """theta <- theta - eta v with v <- mu v + (g + lambda theta), in place: what ``torch.optim.SGD`` does, without its book-keeping.

    A parameter that took no part in a step (its gradient is None) is left alone. A sparse gradient changes the rows that it names, unless
    momentum or weight decay move all of them.
    """

    def __init__(self, parameters: Sequence[Tensor], recipe: Recipe) -> None:
        self.parameters = list(parameters)
        self._momentum, self._decay = recipe.momentum, recipe.weight_decay
        self._velocity = [torch.zeros_like(p) for p in self.parameters] if self._momentum else []

    @property
    def state(self) -> list[Tensor]:
        """All that a step changes."""
        return [p.detach() for p in self.parameters] + self._velocity

    @property
    def moves_without_gradient(self) -> bool:
        """Whether a step along zero is one."""
        return bool(self._momentum or self._decay)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        """One step along ``gradients``, one for each parameter, at the rate eta."""
        if self._velocity or any(g is None or g.is_sparse for g in gradients):
            self._mixed_step(gradients, rate)
        else:
            self._move(self.parameters, [g for g in gradients if g is not None], rate)

    def _mixed_step(self, gradients: Sequence[Tensor | None], rate: float) -> None:
        dense: list[int] = []
        for index, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if gradient.is_sparse and not self.moves_without_gradient:
                # Elsewhere than on a CPU the order in which a row's duplicates are added is anyone's, unless they are summed first.
                summed = gradient if gradient.device.type == "cpu" else gradient.coalesce()
                self.parameters[index].add_(summed * -rate)
            else:
                dense.append(index)
        if dense:
            velocity = [self._velocity[i] for i in dense] if self._velocity else []
            moving = [g.to_dense() if g.is_sparse else g for i in dense if (g := gradients[i]) is not None]
            self._move([self.parameters[i] for i in dense], moving, rate, velocity)

    def _move(self, parameters: list[Tensor], gradients: list[Tensor], rate: float, velocity: Sequence[Tensor] = ()) -> None:
        # Products and sums are apart: a sum with a factor is rounded once in the vectorised part of a tensor and twice in what is left
        # over at its end, and where that is depends on how many models share the tensor.
        if self._decay:
            gradients = list(torch._foreach_add(gradients, torch._foreach_mul(parameters, self._decay)))
        if velocity:
            moving = list(velocity)
            torch._foreach_mul_(moving, self._momentum)
            torch._foreach_add_(moving, gradients)
            gradients = moving
        torch._foreach_add_(parameters, torch._foreach_mul(gradients, -rate))


@contextmanager
def row_wise_embeddings(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Inside, the gradient of a large ``nn.Embedding`` holds the rows of a batch's tokens and no others; outside, all is as before.

    Equal to the dense gradient to rounding, for plain SGD only: momentum and weight decay move every row in every step.
    """
    changed = [module for module in model.modules() if recipe.is_plain_sgd and is_large_table(module)]
    for module in changed:
        module.sparse = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.sparse = False  # type: ignore[assignment]


def is_large_table(module: nn.Module) -> bool:
    """Whether a module is an embedding whose rows are better moved one by one."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.weight.requires_grad
        and module.weight.numel() >= MIN_SPARSE_NUMBERS
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )
