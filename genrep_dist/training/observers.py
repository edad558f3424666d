"""Observers of training: the importances of Eq. 10, and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import predict


class TrackingImportance:
    """Accumulates alpha_i = - sum over steps t with i in B_t of eta_t / |B_t| dL(f_{t-1}(x_i), y_i)/df (Eq. 10).

    ``alpha`` is (N, C) float64 after the first step, None before. The batch mean's 1/|B| enters once, with the output gradient.
    """

    def __init__(self) -> None:
        self.alpha: Tensor | None = None
        self._num_rows = 0

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        self._num_rows = num_rows

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        if self.alpha is None:
            self.alpha = torch.zeros(self._num_rows, output_gradient.shape[1], dtype=torch.float64, device=output_gradient.device)
        self.alpha.index_add_(0, rows, output_gradient.to(torch.float64), alpha=-rate)

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        pass


@dataclass(frozen=True)
class Checkpoint:
    """The model after ``epoch`` epochs (0: as initialised): learning ``rate``, ``state`` dict, ``outputs`` (N, C) on the training set."""

    epoch: int
    rate: float
    state: dict[str, Tensor]
    outputs: Tensor


class Checkpoints:
    """Keeps a checkpoint at each of ``epochs``, in ``saved``.

    The rate of a checkpoint is that of the step that starts from it; after the last step, that of the last step. Outputs are computed
    of ``batch_size`` rows at a time.
    """

    def __init__(self, epochs: Iterable[int], data: Dataset, recipe: Recipe, *, batch_size: int = 1024) -> None:
        self.epochs = frozenset(epochs)
        self.saved: list[Checkpoint] = []
        self._data = data
        self._recipe = recipe
        self._batch_size = batch_size
        self._num_steps = 0

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._save(0, model, 0)

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        pass

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        self._save(epoch, model, next_step)

    def _save(self, epoch: int, model: nn.Module, next_step: int) -> None:
        if epoch not in self.epochs:
            return
        rate = self._recipe.rate(min(next_step, self._num_steps - 1), self._num_steps)
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.saved.append(Checkpoint(epoch, rate, state, predict(model, self._data.inputs, batch_size=self._batch_size)))
