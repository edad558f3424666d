"""Targets that are functions of all outputs of a point: margin, log-probability, probability, loss, and a problem's own.

torch is imported by the methods that compute.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from genrep_dist.core.targets import LABEL, Labels, Outputs, Target, output_text, require_labels
from genrep_dist.errors import PlanError
from genrep_dist.extension import extension_code, owner_text

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.core.losses import Loss


@dataclass(frozen=True)
class TargetInputs:
    """What a number of M points is computed from besides the outputs: ``chosen`` (M,) int64 classes, ``targets`` (M, ...), the ``loss``."""

    chosen: Tensor
    targets: Tensor
    loss: Loss


class FunctionTarget(Target):
    """A number that is a function of all outputs of a point. Explanations follow by the chain rule from its derivative in them.

    ``uses_targets``: whether it reads the points' own targets, besides the class that is chosen.
    """

    noun = "explained number"
    uses_targets: ClassVar[bool] = True

    def explained_outputs(self, outputs: Outputs, labels: Labels | None = None) -> npt.NDArray[np.int64]:
        """The class (M,) that each number is about, 0 or 1 for a model of one output."""
        if self.needs_labels:
            return require_labels(labels, self)
        chosen = super().explained_outputs(outputs)
        # The only output is that of class 1, whatever the prediction.
        return np.ones_like(chosen) if outputs.shape[1] == 1 else chosen

    def choose(self, outputs: Outputs) -> npt.NDArray[np.int64]:
        if isinstance(self.output, int):
            return np.full(len(outputs), self.output, dtype=np.int64)
        return np.asarray(outputs.argmax(axis=1), dtype=np.int64)

    @abstractmethod
    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        """The numbers (M,) at ``outputs`` (M, C) float64."""

    @abstractmethod
    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        """Their derivatives (M, C) in ``outputs`` (M, C) float64."""


class ClassTarget(FunctionTarget):
    """A function of the logits that is about one class."""

    formula: ClassVar[str] = ""
    uses_targets = False

    @property
    def needs_classes(self) -> bool:
        return True

    def description(self, num_outputs: int) -> str:
        return f"the {self.noun}{self.formula} of {output_text(self.output, num_outputs)}"

    def check_classes(self, num_outputs: int, loss_name: str, has_classes: bool) -> None:
        if not has_classes:
            raise PlanError(
                "this target is defined for the logits of classes alone",
                where=f"target.kind: {self.name}",
                expected="a loss whose outputs are those of classes, such as logistic and softmax",
                got=f"loss {loss_name}",
                remedy="explain a logit (`target: {kind: logit, output: 0}`) or the loss (`target: {kind: loss}`); or give your own "
                "loss the attribute `has_classes = True` if its outputs are logits",
            )


class LogProbabilityTarget(ClassTarget):
    """log p_y: of the softmax, or of the sigmoid for one output."""

    name = "log_probability"
    noun = "log-probability"

    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        loss, labels = _cross_entropy(outputs, inputs)
        return -loss.value(outputs, labels)

    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        loss, labels = _cross_entropy(outputs, inputs)
        return -loss.derivative(outputs, labels)


class ProbabilityTarget(LogProbabilityTarget):
    """p_y: of the softmax, or of the sigmoid for one output."""

    name = "probability"
    noun = "probability"

    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        return super().value(outputs, inputs).exp()

    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        return self.value(outputs, inputs).unsqueeze(1) * super().derivative(outputs, inputs)


class MarginTarget(ClassTarget):
    """log(p_y / (1 - p_y)) (TRAK, Park et al. 2023): f_y - log sum_{c != y} exp(f_c); for one output f or -f by the class."""

    name = "margin"
    noun = "margin"
    default_output = LABEL
    formula = " log(p / (1 - p))"

    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        if outputs.shape[1] == 1:
            return outputs.squeeze(1) * self.derivative(outputs, inputs).squeeze(1)
        own = inputs.chosen.unsqueeze(1)
        return outputs.gather(1, own).squeeze(1) - outputs.scatter(1, own, float("-inf")).logsumexp(1)

    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        own = inputs.chosen.unsqueeze(1)
        if outputs.shape[1] == 1:
            return (2 * own - 1).to(outputs)
        return (-outputs.scatter(1, own, float("-inf")).softmax(1)).scatter(1, own, 1.0)


class LossTarget(FunctionTarget):
    """The training loss of a test point with its own label: what raises it harms the prediction."""

    name = "loss"
    noun = "loss"
    default_output = LABEL

    @property
    def needs_labels(self) -> bool:
        return False  # the loss takes the targets as they are

    def explained_outputs(self, outputs: Outputs, labels: Labels | None = None) -> npt.NDArray[np.int64]:
        return np.zeros(len(outputs), dtype=np.int64) if labels is None else labels

    def supports(self, chosen: int, predicted: int) -> bool:
        """A larger loss supports every class but the label."""
        return chosen != predicted

    def check(self, num_outputs: int) -> None:
        del num_outputs
        _require_default_output(self)

    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        with extension_code(inputs.loss, "value"):
            return inputs.loss.value(outputs, inputs.targets)

    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        with extension_code(inputs.loss, "derivative"):
            return inputs.loss.derivative(outputs, inputs.targets)

    def description(self, num_outputs: int) -> str:
        del num_outputs
        return (
            "the loss of the test point with its own label. A positive score means that training on the sample raises this loss, which "
            "harms the prediction; a negative one means that it lowers the loss"
        )


@runtime_checkable
class OwnTarget(Protocol):
    """A problem's own target, its attribute ``target``: any object with these methods. The arguments are those of a loss.

    ``value`` -> (M,); ``derivative`` -> (M, C), its derivative in ``outputs`` (M, C), which are float64.
    """

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor: ...

    def derivative(self, outputs: Tensor, targets: Tensor) -> Tensor: ...


class ProblemTarget(FunctionTarget):
    """The target that the problem brings, an :class:`OwnTarget`."""

    name = "problem"
    default_output = LABEL
    is_of_class = False

    def __init__(self, output: str | int, own: OwnTarget | None = None) -> None:
        super().__init__(output)
        self.own = own

    @property
    def needs_labels(self) -> bool:
        return False

    def explained_outputs(self, outputs: Outputs, labels: Labels | None = None) -> npt.NDArray[np.int64]:
        del labels
        return np.zeros(len(outputs), dtype=np.int64)

    def check(self, num_outputs: int) -> None:
        del num_outputs
        _require_default_output(self)

    def value(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        assert self.own is not None
        with extension_code(self.own, "value"):
            return self.own.value(outputs, inputs.targets)

    def derivative(self, outputs: Tensor, inputs: TargetInputs) -> Tensor:
        assert self.own is not None
        with extension_code(self.own, "derivative"):
            return self.own.derivative(outputs, inputs.targets)

    def description(self, num_outputs: int) -> str:
        del num_outputs
        return "the problem's own target" + ("" if self.own is None else f", {owner_text(self.own)}")


def _cross_entropy(outputs: Tensor, inputs: TargetInputs) -> tuple[Loss, Tensor]:
    from genrep_dist.core.losses import get_loss

    return get_loss("logistic" if outputs.shape[1] == 1 else "softmax"), inputs.chosen


def _require_default_output(target: Target) -> None:
    if target.output != target.default_output:
        raise PlanError(
            "this target is a number of the whole point, not of one output",
            where=f"target: {{kind: {target.name}, output: {target.output}}}",
            expected=f"output: {target.default_output}, or no output",
            got=f"output: {target.output}",
            remedy="remove target.output",
        )
