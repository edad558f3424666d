"""Scorers that have one number for each training sample, whatever the test point but for the sign."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from genrep_dist.core.scorers.base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss
    from genrep_dist.core.scorers.base import ScoreInputs


class SampleNumber(Scorer):
    """phi = -r_i where the explained number grows with the model's confidence in its prediction, r_i where it falls.

    r_i, from :meth:`self_scores`, is large for samples that the model fits badly: such noise lowers confidence.
    """

    is_baseline = True
    has_self_scores = True

    def check(self, loss: Loss, inputs: Tensor, targets: Tensor, num_outputs: int) -> None:
        from genrep_dist.core.scorers.votes import require_classes

        del inputs
        require_classes(self.name, loss, targets, num_outputs)

    def scores(self, inputs: ScoreInputs) -> Tensor:
        from genrep_dist.core.scorers.votes import confidence_direction

        return -self.self_scores(inputs)[:, None] * confidence_direction(inputs)

    @abstractmethod
    def self_scores(self, inputs: ScoreInputs) -> Tensor: ...
