"""A user's own function of pairs of inputs as a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genrep_dist.core.kernels.base import KernelFunction, PairwiseKernel

if TYPE_CHECKING:
    from torch import Tensor, nn


class UserKernel(PairwiseKernel):
    """The kernel of an object called as ``function(model, left, right) -> K (A, B)``."""

    formula, source = "K(x_i, x)", "a kernel of the user's own"

    def __init__(self, function: KernelFunction) -> None:
        self.function = function

    def pairs(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        return self.function(model, left, right)
