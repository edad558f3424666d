"""Kernels of a user's own, named by their class: a :class:`~genrep_dist.core.kernels.base.Kernel`, or a function of pairs of inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genrep_dist.core.kernels.base import Kernel, KernelFunction, PairwiseKernel
from genrep_dist.errors import ProblemError
from genrep_dist.extension import build, declared_settings, extension_code, owner_text

if TYPE_CHECKING:
    from torch import Tensor, nn


class UserKernel(PairwiseKernel):
    """The kernel of an object called as ``function(model, left, right) -> K (A, B)``."""

    formula, source = "K(x_i, x)", "a kernel of the user's own"

    def __init__(self, function: KernelFunction) -> None:
        self.function = function

    def pairs(self, model: nn.Module, left: Tensor, right: Tensor) -> Tensor:
        with extension_code(self.function, "__call__"):
            return self.function(model, left, right)


def build_kernel(factory: Any, fields: object, options: Mapping[str, Any]) -> Kernel:
    """A kernel of its class with a user's ``options``, and with those ``fields`` of an experiment that the class names in ``settings``.

    Any other factory builds a kernel, or an object that is called as a :class:`~genrep_dist.core.kernels.base.KernelFunction`. Raises
    ProblemError for what is neither.
    """
    is_kernel = isinstance(factory, type) and issubclass(factory, Kernel)
    settings = declared_settings(factory, fields) if is_kernel else {}
    built = build(factory, **{**settings, **options})
    if isinstance(built, Kernel):
        return built
    if not callable(built):
        raise ProblemError(
            "an object of this class is no kernel",
            where=owner_text(factory),
            expected="a subclass of Kernel, or a class with a method __call__(model, left, right)",
            got=type(built).__qualname__,
        )
    return UserKernel(built)
