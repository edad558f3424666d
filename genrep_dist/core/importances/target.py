"""The target derivative (Eq. 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.importances.base import OutputImportance
from genrep_dist.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss


class TargetDerivative(OutputImportance):
    """Alpha_i = -dL(f(x_i), y_i)/df at the model that is explained."""

    name = "target"
    formula = "-dL/df(f(x_i), y_i)"
    source = "target derivative, Tsai et al. 2023, Eq. 7"

    def compute(self, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        return target_importance(loss, outputs, targets)


def target_importance(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Alpha (N, C) = -dL(f(x_i), y_i)/df, the target derivative (Eq. 7), in the dtype of ``outputs`` (N, C).

    ``targets`` are what the loss takes. A positive alpha_i means that training on sample i raises its own output.
    """
    alpha = -loss.derivative(outputs, targets)
    if outputs.dim() != 2 or alpha.shape != outputs.shape:
        raise ProblemError(
            "the loss's derivative does not have the outputs' shape",
            where=f"loss {loss.name}",
            expected="(N, C) for both",
            got=f"outputs {tuple(outputs.shape)}, derivative {tuple(alpha.shape)}",
        )
    return alpha
