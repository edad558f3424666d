"""Which samples have a NaN or Inf gradient, after a training diverged: it is repeated up to the step that spoiled the parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import single_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.loop import Observer, all_finite
from genrep_dist.training.torch_private import vector_jacobian_product


class _SpoiledError(Exception):
    """A step has made a parameter NaN or Inf."""


class FirstSpoiledStep(Observer):
    """Stops a training after the first step that spoils the parameters: ``rows`` of that step, and the parameters before it."""

    def __init__(self) -> None:
        self.rows = torch.empty(0, dtype=torch.int64)
        self.model: nn.Module | None = None
        self._before: list[Tensor] = []

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        del num_rows, num_steps
        self.model, self._before = model, [p.detach().clone() for p in model.parameters()]

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        del output_gradient, rate
        assert self.model is not None
        parameters = [p.detach() for p in self.model.parameters()]
        if all_finite(parameters):
            self._copy(parameters, self._before)
            return
        self.rows = rows
        self._copy(self._before, parameters)
        raise _SpoiledError

    @staticmethod
    def _copy(source: list[Tensor], target: list[Tensor]) -> None:
        for one, other in zip(source, target, strict=True):
            other.copy_(one)

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        del epoch, model, next_step


def name_culprits(error: NonFiniteError, repeat: Callable[[FirstSpoiledStep], object], loss: Loss, data: Dataset) -> NonFiniteError:
    """The error of a diverged training, with the samples whose own gradient is NaN or Inf while the parameters were still finite.

    ``repeat`` trains again with an observer. ``error`` itself if no sample is to blame, or if all rows of the step are: then the
    parameters have grown too large.
    """
    first = FirstSpoiledStep()
    try:
        repeat(first)
    except _SpoiledError:
        pass
    except NonFiniteError:
        return error
    if first.model is None or not len(first.rows):
        return error
    first.model.eval()
    bad = [row for row in first.rows.tolist() if not _is_finite(first.model, loss, data, row)]
    if not bad or (len(bad) == len(first.rows) > 1):
        return error
    ids = data.ids[torch.tensor(bad)].tolist()
    return NonFiniteError(
        "the gradient of a training sample is NaN or Inf, and with it all parameters of the model",
        where=f"{error.where.partition(';')[0]}; sample ids {ids[:5]}",
        expected="finite gradients",
        got=f"{len(bad)} bad samples in a batch of {len(first.rows)}",
        remedy="look at these samples, and in the model and loss at roots, norms, logarithms and quotients at 0, which have no finite "
        "derivative there",
    )


def _is_finite(model: nn.Module, loss: Loss, data: Dataset, row: int) -> bool:
    """Whether the gradient of one sample's loss is finite; True where it cannot be computed for the sample alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        with torch.enable_grad():
            outputs = single_outputs(model, data.inputs[row]).unsqueeze(0)
        slope = loss.derivative(outputs.detach(), data.targets[row : row + 1])
        found = vector_jacobian_product(outputs, parameters, slope, allow_unused=True)
    except (ProblemError, RuntimeError):
        return True
    return all_finite([slope, *(gradient.to_dense() for gradient in found if gradient is not None)])
