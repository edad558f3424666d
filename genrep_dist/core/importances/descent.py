"""Importances of kernel gradient descent (Eq. 8-9)."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from genrep_dist.core.importances.base import GramOperator, SolvedImportance, SolveInputs

if TYPE_CHECKING:
    from torch import Tensor


class KernelDescent(SolvedImportance):
    """Gradient descent in the kernel's function space, by default over the batches and rates of the model's own training."""

    name = "descent"
    formula = "-sum_t eta_t/|B_t| dL/df(K alpha_t(x_i), f(x_i))"
    source = "kernel gradient descent, Tsai et al. 2023, Eq. 8-9"
    settings = ("descent",)
    advice = "raise descent.epochs or descent.learning_rate for a closer fit"
    follows_training = True

    def __init__(self, descent: Any) -> None:
        self.options, self.system = descent, descent.system

    def solve(self, gram: GramOperator, inputs: SolveInputs) -> tuple[Tensor, dict[str, Any]]:
        import torch

        from genrep_dist.core.solvers.kernel_descent import kernel_descent

        changes = {name: value for name in ("learning_rate", "epochs") if (value := getattr(self.options, name)) is not None}
        recipe = replace(inputs.recipe, **changes)
        mini_batches = self.options.batches == "recipe"
        batch_size = recipe.batch_size if mini_batches else len(inputs.outputs)
        visited = recipe.steps_per_epoch(len(inputs.outputs)) * batch_size if mini_batches else batch_size
        batches = [batch for order in inputs.epoch_orders(recipe.epochs) for batch in torch.split(order[:visited], batch_size)]
        alpha, _, certificate = kernel_descent(
            gram.matvec,
            inputs.loss,
            inputs.outputs,
            rates=[recipe.rate(step, len(batches)) for step in range(len(batches))],
            batches=batches if mini_batches else None,
            batch_matvec=gram.columns if mini_batches else None,
        )
        return alpha, asdict(certificate)

    def gram_products(self, epochs: int) -> int:
        return int(self.options.epochs or epochs)
