"""The vote of a label: a baseline that does not look at the model's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.importances.base import OutputImportance
from genrep_dist.core.importances.target import target_importance

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss


class SameLabel(OutputImportance):
    """Alpha_i = -dL(0, y_i)/df: the target derivative of a model whose outputs are all 0.

    Every sample votes for its label: +-1/2 with the logistic loss, 1 - 1/C and -1/C with softmax, y_i with the squared loss. With a cosine
    as kernel, every training sample raises the output of its own class, the nearest ones most: the largest phi are those of the nearest
    neighbours of the explained class, the smallest those of the nearest neighbours of the others.
    """

    name = "same-label"
    formula = "-dL/df(0, y_i)"
    source = "votes of the nearest neighbours for their labels, with the cosine kernels; Hanawa et al. 2021"

    def compute(self, loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
        return target_importance(loss, outputs.new_zeros(outputs.shape), targets)
