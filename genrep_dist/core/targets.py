"""What is explained: a function of the model's outputs at a test point. No torch here.

A package adds one by an entry point of the group `genrep_dist.targets`, or with ``TARGETS.register``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import PlanError
from genrep_dist.registry import Registry, subclass_of

Outputs = npt.NDArray[np.floating[Any]]


class Target(ABC):
    """The explained number f(x), the same for explanations and for retrained models: one of the model's outputs, chosen by a rule.

    ``output``: what the experiment declares, "predicted" or the number of an output.
    """

    name: ClassVar[str]

    def __init__(self, output: str | int) -> None:
        self.output = output

    @abstractmethod
    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        """The output that is explained at each of M points (M,), from the original model's ``outputs`` (M, C)."""

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

    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        if isinstance(self.output, int):
            return np.full(len(outputs), self.output, dtype=np.int64)
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)


TARGETS: Registry[type[Target]] = Registry("target", "genrep_dist.targets", subclass_of(Target))  # type: ignore[type-abstract]
TARGETS.register(LogitTarget.name, LogitTarget)
