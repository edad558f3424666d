"""What is explained: one of the model's outputs at a test point; functions of all of them are in function_targets.py. No torch here.

A package adds one by an entry point of the group `genrep_dist.targets`, or with ``TARGETS.register``. Labels of classes are integers from
0 to C - 1; with one output, the logit of class 1 against class 0, they are 0 and 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.extension import Extension, require_returned
from genrep_dist.registry import Registry

Outputs = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]
LABEL = "label"


class Target(Extension, ABC):
    """The explained number f(x), the same for explanations and for retrained models: one of the model's outputs, chosen by a rule.

    ``output``: what the experiment declares, "predicted", "label" or the number of an output; ``default_output`` where it declares none.
    ``is_of_class``: whether it is about one class, so that it says which class its rise supports. ``noun``: its name in a sentence.
    """

    name: ClassVar[str]
    default_output: ClassVar[str] = "predicted"
    is_of_class: ClassVar[bool] = True
    noun: ClassVar[str] = "prediction"

    def __init__(self, output: str | int) -> None:
        self.output = output

    @property
    def needs_labels(self) -> bool:
        """Whether the labels of the test points choose the output."""
        return self.output == LABEL

    @property
    def needs_classes(self) -> bool:
        """Whether it is defined for outputs of classes only, if there are several."""
        return False

    @abstractmethod
    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        """The output that is explained at each of M points (M,), integers from 0 to C - 1, from the original model's ``outputs`` (M, C).

        The choice at a point depends on its own outputs alone.
        """

    def explained_outputs(self, outputs: Outputs, labels: Labels | None = None) -> npt.NDArray[np.int64]:
        """:meth:`choose`, checked: (M,) int64; of ``output: label`` the outputs of the ``labels`` (M,).

        Raises ProblemError for another shape or dtype, and for a number that is no output.
        """
        if self.needs_labels:
            own = require_labels(labels, self)
            return np.zeros_like(own) if outputs.shape[1] == 1 else own
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

    def supports(self, chosen: int, predicted: int) -> bool:
        """Whether a rise of the number supports the ``predicted`` class, for what :meth:`explained_outputs` has ``chosen``, of C > 1."""
        return chosen == predicted

    def description(self, num_outputs: int) -> str:
        """The explained number in words."""
        return f"{self.name} of the output {self.output}" if num_outputs > 1 else self.name

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
    """A raw logit: of a declared output, of the class that the original model predicts, or of the point's own label."""

    name = "logit"

    @property
    def needs_classes(self) -> bool:
        return not isinstance(self.output, int)

    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        if isinstance(self.output, int):
            return np.full(len(outputs), self.output, dtype=np.int64)
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)

    def description(self, num_outputs: int) -> str:
        if num_outputs > 1 and isinstance(self.output, int):
            return f"the model's raw output {self.output}"
        return "the model's raw logit" if num_outputs == 1 else f"the raw logit of {output_text(self.output, num_outputs)}"


def output_text(output: str | int, num_outputs: int) -> str:
    """The declared output in words."""
    if output == LABEL:
        return "the test point's own label"
    if num_outputs == 1:
        return "class 1"
    return "the class that the original model predicts" if output == "predicted" else f"class {output}"


def require_labels(labels: Labels | None, target: Target) -> Labels:
    """``labels``; ProblemError if there are none."""
    if labels is None:
        raise ProblemError(
            "this target needs the labels of the points",
            where=f"target: {{kind: {target.name}, output: {target.output}}}",
            expected="class numbers (M,) from 0 to C - 1; 0 and 1 for a model of one output",
            got="points without such labels",
            remedy="give the labels of new points (run.explain(..., targets=...)), or choose `output: predicted` or a number",
        )
    return labels


def class_labels(targets: npt.NDArray[Any], num_outputs: int) -> Labels | None:
    """The class numbers (M,) of ``targets`` (M,) or (M, 1); None if they are others, such as the targets of a regression."""
    values = targets.reshape(len(targets), -1)
    if values.shape[1] != 1 or values.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore"):  # a number too large for an integer is no class
        found: Labels = values[:, 0].astype(np.int64)
    fits = (found == values[:, 0]) & (found >= 0) & (found < max(2, num_outputs))
    return found if bool(fits.all()) else None


TARGETS: Registry[type[Target]] = Registry("target", "genrep_dist.targets", Target)
TARGETS.register(LogitTarget.name, LogitTarget)
for _name, _class in (
    ("margin", "MarginTarget"),
    ("log_probability", "LogProbabilityTarget"),
    ("loss", "LossTarget"),
    ("probability", "ProbabilityTarget"),
    ("problem", "ProblemTarget"),
):
    TARGETS.register(_name, f"genrep_dist.core.function_targets:{_class}")
