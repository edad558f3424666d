"""Global importances that need no solver: the target derivative. Tracking (Eq. 10) is gathered while training, the rest is solved for."""

from __future__ import annotations

from torch import Tensor

from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError


def target_importance(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Alpha (N, C) = -dL(f(x_i), y_i)/df, the target derivative (Eq. 7), in the dtype of ``outputs`` (N, C).

    ``targets`` are what the loss takes. A positive alpha_i says that training on sample i pushes its own output up.
    """
    alpha = -loss.derivative(outputs, targets)
    if outputs.dim() != 2 or alpha.shape != outputs.shape:
        raise ProblemError(
            "the loss's derivative has not the outputs' shape",
            where=f"loss {loss.name}",
            expected="(N, C) for both",
            got=f"outputs {tuple(outputs.shape)}, derivative {tuple(alpha.shape)}",
        )
    return alpha
