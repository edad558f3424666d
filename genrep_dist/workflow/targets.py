"""The explained number on a worker and in the driver: its derivative in the outputs of test points, and its value for trained models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genrep_dist.config import Experiment
from genrep_dist.config.metrics import measured_metrics
from genrep_dist.core.function_targets import FunctionTarget, OwnTarget, ProblemTarget, TargetInputs
from genrep_dist.core.losses import get_loss
from genrep_dist.core.targets import LABEL, Target, class_labels, require_labels
from genrep_dist.errors import PlanError, ProblemError
from genrep_dist.extension import owner_text
from genrep_dist.problems.checks import build_model
from genrep_dist.problems.protocol import Dataset, Problem
from genrep_dist.training.loop import predict
from genrep_dist.workflow.returned import checked_tensor

TRIED_ROWS = 8
STEP, TOLERANCE = 1e-3, 1e-2
"""Step of the differences of values that a derivative is compared with, and the largest disagreement, relative to the largest number."""


def target_of(experiment: Experiment, problem: Problem) -> Target:
    """The experiment's target, with the problem's own where it is declared. PlanError where the problem has none."""
    target = experiment.make_target()
    if not isinstance(target, ProblemTarget):
        return target
    own: object = getattr(problem, "target", None)
    if not isinstance(own, OwnTarget):
        raise PlanError(
            "the problem brings no target",
            where="target.kind: problem",
            expected="an attribute `target` of the problem with the methods value(outputs, targets) and derivative(outputs, targets)",
            got="no such attribute" if own is None else owner_text(own),
        )
    return ProblemTarget(target.output, own)


def check_target(experiment: Experiment, target: Target, problem: Problem, test: Dataset, num_outputs: int) -> None:
    """Raise an error for a target that is not defined for the problem, from the outputs of a new model on the first ``test`` samples.

    PlanError for a metric that it does not support, ProblemError for labels that are not there and for a derivative that is not that of
    its value, what the target's own code raises otherwise.
    """
    target.check(num_outputs)
    labels = class_labels(test.targets.numpy(), num_outputs)
    if target.needs_labels:
        require_labels(labels, target)
    has_class = target.is_of_class and (target.output != LABEL or labels is not None)
    for metric in measured_metrics(experiment):
        if metric.needs_classes and (experiment.target.group is not None or not has_class):
            raise PlanError(
                f"{metric.name} is about the predicted class of one test point, and this target is not",
                where=f"target, {metric.name}",
                expected="a target of one class at single test points",
                got=f"{experiment.target.model_dump(exclude_none=True)}, " + ("class labels" if labels is not None else "no class labels"),
                remedy=f"remove {metric.name}, or choose another target",
            )
    if isinstance(target, FunctionTarget):
        outputs = predict(build_model(problem), test.inputs[:TRIED_ROWS]).double()
        chosen = torch.from_numpy(target.explained_outputs(outputs.numpy(), None if labels is None else labels[:TRIED_ROWS]))
        _check_derivative(target, outputs, TargetInputs(chosen, test.targets[:TRIED_ROWS], get_loss(problem.loss)))


def _check_derivative(target: FunctionTarget, outputs: Tensor, inputs: TargetInputs) -> None:
    where = "the first test samples"
    found = checked_tensor(target.derivative(outputs, inputs), outputs.shape, target, "derivative", where).double()
    differences = torch.empty_like(outputs)
    for output in range(outputs.shape[1]):
        step = torch.zeros_like(outputs)
        step[:, output] = STEP
        above, below = (explained_numbers(target, moved, inputs, where) for moved in (outputs + step, outputs - step))
        differences[:, output] = (above - below) / (2 * STEP)
    apart = (found - differences).abs()
    if bool((apart > TOLERANCE * torch.maximum(found.abs().max(), differences.abs().max())).any()):
        row, output = divmod(int(apart.argmax()), outputs.shape[1])
        raise ProblemError(
            "the derivative of the target is not that of its value",
            where=f"target.kind: {target.name}, {where}",
            expected=f"{float(differences[row, output]):.6g} for output {output} of sample {row}, by differences of the value",
            got=f"{float(found[row, output]):.6g}",
            remedy="correct derivative(outputs, targets): (M, C), the derivative of value(outputs, targets) (M,) in the outputs",
        )


def explained_numbers(target: Target, outputs: Tensor, inputs: TargetInputs, where: str) -> Tensor:
    """The explained numbers (M,) float64 at ``outputs`` (M, C) float64."""
    if isinstance(target, FunctionTarget):
        return checked_tensor(target.value(outputs, inputs), outputs.shape[:1], target, "value", where).double()
    return outputs.gather(1, inputs.chosen.unsqueeze(1)).squeeze(1)


def is_output(experiment: Experiment) -> bool:
    """Whether what is explained is one output of each test point, as the ledger has it."""
    return experiment.target.group is None and not isinstance(experiment.make_target(), FunctionTarget)


def group_means(columns: Tensor, groups: Sequence[Sequence[int]] | None) -> Tensor:
    """The means (..., G) of ``columns`` (..., M) over the members of each group; the columns themselves without groups."""
    if groups is None:
        return columns
    return torch.stack([columns[..., list(members)].mean(dim=-1) for members in groups], dim=-1)
