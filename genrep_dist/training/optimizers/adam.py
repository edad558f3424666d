"""Adam (Kingma and Ba 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from genrep_dist.core.gradients.model import as_real
from genrep_dist.problems.protocol import Recipe
from genrep_dist.training.optimizers.base import Optimizer, per_model, weight_decay_reasons


class Adam(Optimizer):
    """theta <- theta - eta m / (sqrt(v) + eps), as ``torch.optim.Adam``, with m and v the means of g and g^2 with the weights beta^age.

    The state holds sums and the sums of their weights, whose quotients are torch's bias-corrected moments.
    """

    title: ClassVar[str] = "Adam"
    decoupled_weight_decay: ClassVar[bool] = False
    settings = ("betas", "eps", "amsgrad", "weight_decay")
    takes_rate_tensors = True

    def __init__(self, recipe: Recipe) -> None:
        self._betas, self._eps, self._amsgrad, self._weight_decay = recipe.betas, recipe.eps, recipe.amsgrad, recipe.weight_decay

    def state_shapes(self, shape: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
        largest = {"largest_squares": shape} if self._amsgrad else {}
        return {"gradients": shape, "squares": shape, "gradients_weight": (), "squares_weight": (), **largest}

    @property
    def is_elementwise(self) -> bool:
        return True

    def update(self, parameters: list[Tensor], gradients: list[Tensor], state: list[dict[str, Tensor]], rate: float) -> None:
        moving, along = [as_real(p) for p in parameters], [as_real(g) for g in gradients]
        if self._weight_decay and self.decoupled_weight_decay:
            torch._foreach_mul_(moving, 1 - rate * self._weight_decay)
        elif self._weight_decay:
            along = list(torch._foreach_add(along, torch._foreach_mul(moving, self._weight_decay)))
        sums, squares, weights, square_weights = (
            [as_real(one[name]) for one in state] for name in ("gradients", "squares", "gradients_weight", "squares_weight")
        )
        for means, beta, new in ((sums, self._betas[0], along), (squares, self._betas[1], torch._foreach_mul(along, along))):
            torch._foreach_mul_(means, beta)
            torch._foreach_add_(means, new)
        for counts, beta in ((weights, self._betas[0]), (square_weights, self._betas[1])):
            torch._foreach_mul_(counts, beta)
            torch._foreach_add_(counts, 1)
        if self._amsgrad:
            largest = [as_real(one["largest_squares"]) for one in state]
            torch._foreach_maximum_(largest, squares)
            squares = largest
        # m / (sqrt(v) + eps) with the weights taken out: one operation less on tensors of the parameters' size.
        roots = torch._foreach_sqrt(square_weights)
        denominators = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(denominators, [per_model(root * self._eps, p) for root, p in zip(roots, moving, strict=True)])
        steps = torch._foreach_div(sums, denominators)
        factors = torch._foreach_mul(torch._foreach_div(roots, weights), -rate)
        torch._foreach_mul_(steps, [per_model(factor, p) for factor, p in zip(factors, moving, strict=True)])
        torch._foreach_add_(moving, steps)

    def preconditioner(self, parameter: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """sqrt(v) + eps; eps for a parameter that has taken no step."""
        squares = as_real(state["largest_squares" if self._amsgrad else "squares"])
        weight = per_model(state["squares_weight"], squares)
        return (squares / torch.where(weight > 0, weight, 1.0)).sqrt() + self._eps

    def identity_gap_reasons(self) -> list[str]:
        reasons = [f"{self.title} divides each element of a step by the root of its mean square, so the steps are not along the gradients"]
        if self._betas[0]:
            reasons.append(f"beta {self._betas[0]:g}: each step repeats a share of the gradients before it")
        return reasons + weight_decay_reasons(self._weight_decay)

    @property
    def description(self) -> str:
        amsgrad, decay = " and AMSGrad" if self._amsgrad else "", f" and weight decay {self._weight_decay:g}" if self._weight_decay else ""
        return f"{self.title} with betas {self._betas[0]:g} and {self._betas[1]:g}{amsgrad}{decay}"
