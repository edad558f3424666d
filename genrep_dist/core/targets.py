"""What is explained: a function of the model's outputs at a test point. No torch here.

A package adds one by an entry point of the group `genrep_dist.targets`, or with ``TARGETS.register``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import PlanError
from genrep_dist.extension import Extension, require_returned
from genrep_dist.registry import Registry

Outputs = npt.NDArray[np.floating[Any]]


class Target(Extension, ABC):
    """The explained number f(x), the same for explanations and for retrained models: one of the model's outputs, chosen by a rule.

    ``output``: what the experiment declares, "predicted" or the number of an output.
    """

    name: ClassVar[str]

    def __init__(self, output: str | int) -> None:
        self.output = output

    @property
    def needs_classes(self) -> bool:
        """Whether it is defined for outputs of classes only, if there are several."""
        return False

    @abstractmethod
    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        """The output that is explained at each of M points (M,), integers from 0 to C - 1, from the original model's ``outputs`` (M, C).

        The choice at a point depends on its own outputs alone.
        """

    def explained_outputs(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        """:meth:`choose`, checked: (M,) int64. Raises ProblemError for another shape or dtype, and for a number that is no output."""
        chosen: Any = self.choose(outputs)
        points, num_outputs = outputs.shape
        fits = isinstance(chosen, np.ndarray) and chosen.shape == (points,) and chosen.dtype.kind in "iu"
        got = f"{chosen.dtype} {chosen.shape}" if isinstance(chosen, np.ndarray) else chosen
        expected = f"integers ({points},) from 0 to {num_outputs - 1}"
        require_returned(fits, self, "choose", expected, got)
        outside = (chosen < 0) | (chosen >= num_outputs)
        require_returned(not outside.any(), self, "choose", expected, f"{chosen[outside][:5].tolist()}")
        explained: npt.NDArray[np.int64] = chosen.astype(np.int64)
        return explained

    def check_classes(self, num_outputs: int, loss_name: str, has_classes: bool) -> None:
        """Raise PlanError if the target :attr:`needs_classes` and the loss of a model of several outputs has none."""
        if self.needs_classes and num_outputs > 1 and not has_classes:
            raise PlanError(
                "the explained output must be declared: the outputs of this loss are not those of classes",
                where="target.output",
                expected=f"one of the outputs, 0 to {num_outputs - 1}",
                got=f"{self.output!r}, the largest of {num_outputs} outputs: another quantity for each test point (loss {loss_name})",
                remedy="add the line `target: {output: 0}`, with the number of the output; or give the loss the attribute "
                "`has_classes = True` if its outputs are those of classes",
            )

    def check(self, num_outputs: int) -> None:
        """Raise PlanError for a model that the target is not defined for."""
        if isinstance(self.output, int) and self.output >= num_outputs:
            raise PlanError(
                "the declared target is not an output of the model",
                where="target.output",
                expected=f"0 to {num_outputs - 1}",
                got=str(self.output),
            )


class LogitTarget(Target):
    """A raw logit: of a declared output, or of the class that the original model predicts."""

    name = "logit"

    @property
    def needs_classes(self) -> bool:
        return self.output == "predicted"

    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        if isinstance(self.output, int):
            return np.full(len(outputs), self.output, dtype=np.int64)
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)


TARGETS: Registry[type[Target]] = Registry("target", "genrep_dist.targets", Target)
TARGETS.register(LogitTarget.name, LogitTarget)
