"""The votes of labels for the explained number, which baselines without a model of their own use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.errors import ProblemError

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss
    from genrep_dist.core.scorers.base import ScoreInputs


def label_votes(inputs: ScoreInputs) -> Tensor:
    """(N, M) float64: how much the label of a training sample speaks for the explained number of a test point.

    The target derivative of a model whose outputs are all 0, times the derivative of the explained number. For the logit of class c with
    softmax: 1 - 1/C for samples of class c, -1/C for others; for a single logit 1/2 for label 1, -1/2 for label 0.
    """
    from genrep_dist.core.importances.target import target_importance

    votes = target_importance(inputs.loss, inputs.outputs.new_zeros(inputs.outputs.shape), inputs.targets)
    return votes @ inputs.weights.T


def confidence_direction(inputs: ScoreInputs) -> Tensor:
    """(M,) float64, 1 or -1: whether the explained number grows with the model's confidence in the class that it predicts there.

    0 where it depends on the predicted class in neither direction.
    """
    predictions = inputs.loss.soft_targets(inputs.test_outputs)
    certain = predictions.round() if predictions.dim() == 1 else predictions.argmax(dim=1)
    towards = -inputs.loss.derivative(inputs.test_outputs.new_zeros(inputs.test_outputs.shape), certain)
    direction = (towards * inputs.weights).sum(dim=1)
    # A weight of rounding alone has no direction.
    return direction.sign() * (direction.abs() > 1e-12 * inputs.weights.abs().sum(dim=1))


def require_classes(name: str, loss: Loss, targets: Tensor, num_outputs: int) -> None:
    """Raise ProblemError for a scorer that is defined for classes alone."""
    from genrep_dist.core.losses import has_classes

    if not has_classes(loss, targets, num_outputs):
        raise ProblemError(
            f"{name} is defined for classes alone",
            where=f"methods: {name}",
            expected="a loss whose outputs are those of classes, such as logistic and softmax",
            got=f"loss {loss.name}",
            remedy="leave this method out",
        )
