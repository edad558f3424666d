"""The norm of each sample's loss gradient: a baseline that knows nothing of the test point but the predicted class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.scorers.sample_number import SampleNumber

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.scorers.base import ScoreInputs


class GradientNorm(SampleNumber):
    """phi = -|dL(f(x_i), y_i)/dtheta|, or the norm itself where the explained number falls with the model's confidence."""

    name = "gradient-norm"
    formula = "-|dL/dtheta(f(x_i), y_i)|, or the norm where the explained number falls with the model's confidence in its prediction"
    source = "baseline: the gradient norm of a training sample; Paul et al. 2021, GraNd"
    meaning = "the norm of each sample's loss gradient, the same for all test points but for its sign"
    needs = ("classes", "gradients")
    base = "ntk"

    def self_scores(self, inputs: ScoreInputs) -> Tensor:
        from genrep_dist.core.importances.target import target_importance

        return inputs.norms(target_importance(inputs.loss, inputs.outputs, inputs.targets))
