"""The weights and targets of a retraining, from its change and the training set."""

from __future__ import annotations

import torch
from torch import Tensor

from genrep_dist.core.changes import Change
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset


def weights_of(change: Change, train: Dataset) -> Tensor | None:
    """The weights (N,) float64 of the training samples, on the CPU; None where all are 1."""
    if not change.weights:
        return None
    weights = torch.ones(len(train.ids), dtype=torch.float64)
    weights[_rows([sample for sample, _ in change.weights], train)] = torch.tensor([w for _, w in change.weights], dtype=torch.float64)
    return weights


def targets_of(change: Change, train: Dataset, num_outputs: int, where: str) -> Tensor | None:
    """The targets (N, ...) of the training samples, on their device; None where none changes. ProblemError for one of another form."""
    if not change.labels:
        return None
    targets, each = train.targets.clone(), train.targets[0].numel()
    classes = not targets.dtype.is_floating_point
    for sample, label in change.labels:
        if len(label) != each or (classes and not all(value in range(max(2, num_outputs)) for value in label)):
            raise ProblemError(
                "a new label does not fit the targets",
                where=f"{where}, sample id {sample}",
                expected=f"{each} number{'s' if each > 1 else ''}" + (f", a class below {max(2, num_outputs)}" if classes else ""),
                got=", ".join(f"{value:g}" for value in label),
                remedy="correct the labels that the metric requests",
            )
    values = torch.tensor([label for _, label in change.labels], dtype=torch.float64).reshape(-1, *targets.shape[1:])
    targets[_rows([sample for sample, _ in change.labels], train)] = values.to(targets)
    return targets


def _rows(ids: list[int], train: Dataset) -> Tensor:
    """The rows of the training set with ``ids``, in their order."""
    order = torch.argsort(train.ids.cpu())
    return order[torch.searchsorted(train.ids.cpu()[order], torch.tensor(ids))]
