"""Grad-Cos: the gradient product, divided by the norm of the training sample's gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.scorers.base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.scorers.base import ScoreInputs


class GradCos(Scorer):
    """phi = -<dL/dtheta(x_i), df/dtheta(x)> / |dL/dtheta(x_i)|; 0 for a sample without gradient.

    That is the cosine of the two gradients times |df/dtheta(x)|, which is one number for each test point and changes no ranking.
    """

    name = "gradcos"
    formula = "-<dL/dtheta(x_i), df/dtheta(x)> / |dL/dtheta(x_i)|"
    source = "Grad-Cos: the cosine of loss gradients; Hanawa et al. 2021; Charpiat et al. 2019"
    meaning = "the gradient product, divided by the norm of the training sample's gradient"
    needs = ("gradients",)
    base = "ntk"

    def scores(self, inputs: ScoreInputs) -> Tensor:
        import torch

        from genrep_dist.core.importances.target import target_importance

        alpha = target_importance(inputs.loss, inputs.outputs, inputs.targets)
        norms = inputs.norms(alpha)[:, None]
        return torch.where(norms > 0, inputs.products(alpha) / norms, 0.0)
