"""What a scorer is: a method whose scores are not an importance times a kernel. Most of them are baselines.

Code outside a scorer's own file asks for what it declares, never for its name. torch is imported by the methods that compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

from genrep_dist.extension import Extension

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss


class ScoreInputs(Protocol):
    """What scores of M test points are computed from: N training samples and the final model of one seed. Numbers are on the CPU."""

    loss: Loss
    train_inputs: Tensor
    targets: Tensor
    """(N, ...), that the model was trained on."""
    outputs: Tensor
    """(N, C) float64 of the training samples."""
    test_inputs: Tensor
    test_outputs: Tensor
    """(M, C) float64."""
    weights: Tensor
    """(M, C) float64: the derivative of the explained number in the outputs; one-hot for a logit."""

    def products(self, alpha: Tensor) -> Tensor:
        """Sum_c alpha_c K_c (N, M) float64 of the scorer's ``base`` kernel, for ``alpha`` (N, C) float64."""

    def norms(self, alpha: Tensor) -> Tensor:
        """|sum_c alpha_c Phi_c| (N,) float64, of the features of the scorer's ``base`` kernel."""


class Scorer(Extension, ABC):
    """Scores phi (N, M) of training samples for test points.

    ``base``: the feature kernel that :meth:`ScoreInputs.products` and ``norms`` are of; None if the scorer uses neither.
    ``settings`` names the fields of an experiment that it is built from. ``is_baseline``: whether it is a simple method that others should
    beat. ``meaning``: what it does, in a few words.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    meaning: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()
    base: ClassVar[str | None] = None
    is_baseline: ClassVar[bool] = False
    has_self_scores: ClassVar[bool] = False
    """Whether :meth:`self_scores` is defined."""

    def check(self, loss: Loss, inputs: Tensor, targets: Tensor, num_outputs: int) -> None:
        """Raise ProblemError for a problem that the scores are not defined for, from a few of its training samples."""
        del loss, inputs, targets, num_outputs

    @abstractmethod
    def scores(self, inputs: ScoreInputs) -> Tensor:
        """Phi (N, M) float64. Positive: training on the sample raises the explained number. Scores of a point depend on no other point."""

    def self_scores(self, inputs: ScoreInputs) -> Tensor:
        """(N,) float64, large for samples that are likely to be mislabelled. ``inputs`` have no test points."""
        raise NotImplementedError(type(self).__qualname__)
