"""The training loss of each sample: a baseline that knows nothing of the test point but the predicted class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.scorers.sample_number import SampleNumber

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.scorers.base import ScoreInputs


class OwnLoss(SampleNumber):
    """phi = -L(f(x_i), y_i) where the explained number grows with the model's confidence, L where it falls: noise lowers confidence."""

    name = "own-loss"
    formula = "-L(f(x_i), y_i), or L where the explained number falls with the model's confidence in its prediction"
    source = "baseline: the loss of a training sample"
    meaning = "the training loss of each sample, the same for all test points but for its sign"
    needs = ("classes",)

    def self_scores(self, inputs: ScoreInputs) -> Tensor:
        return inputs.loss.value(inputs.outputs, inputs.targets)
