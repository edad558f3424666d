"""The training loop. One loop for original models and for retrainings, so that the two can never differ by accident."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import batches
from genrep_dist.training.memory_format import sequences_channels_last
from genrep_dist.training.microbatches import gradients
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.sgd import Descent, row_wise_embeddings


class Observer(Protocol):
    """Sees the run from outside and changes nothing in it."""

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        """Before the first step, at the initial parameters."""

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        """After each step: ``rows`` (B,) positions in the training set, ``output_gradient`` (B, C) = dL/df / B, ``rate`` eta."""

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        """After epoch ``epoch`` (counted from 1); ``next_step`` is the number of steps done."""


def train(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    randomness: Randomness,
    *,
    kept: Tensor | None = None,
    observers: Sequence[Observer] = (),
    what: str = "",
    at_once: int | None = None,
) -> nn.Module:
    """Train ``model`` in place by mini-batch SGD and return it.

    Each epoch visits all N rows in the order that ``randomness`` gives, cut into batches of ``recipe.batch_size``. With ``kept``
    (N,) bool, rows marked False drop out of the batch they would have been in, and the mean runs over the rows that remain: the
    other rows keep their place and their step, so that a retraining shares its random numbers with the original run. A batch
    that loses all its rows is no step. The gradient of the mean loss enters through dL/df, which is exact and is what Eq. 10
    accumulates. At most ``at_once`` rows of a batch go through the model together: where rows are independent that
    changes nothing but the order of sums.

    Raises NonFiniteError at the end of the first epoch that leaves a parameter NaN or Inf; ``what`` is trained, for the message.
    """
    num_rows = len(data.inputs)
    steps_per_epoch = -(-num_rows // recipe.batch_size)
    num_steps = recipe.epochs * steps_per_epoch
    parameters = [p for p in model.parameters() if p.requires_grad]
    descent = Descent(parameters, recipe)
    with randomness.scope("train"), row_wise_embeddings(model, recipe), sequences_channels_last(model):
        for observer in observers:
            observer.start(model, num_rows, num_steps)
        model.train()
        for epoch in range(1, recipe.epochs + 1):
            order = randomness.order(epoch, num_rows).to(data.inputs.device)
            for batch in batches(data, order, recipe.batch_size, kept, (epoch - 1) * steps_per_epoch):
                rate = recipe.rate(batch.step, num_steps)
                output_gradient, found = gradients(model, loss, recipe, parameters, batch, at_once)
                descent.step(found, rate)
                for observer in observers:
                    observer.step(batch.rows, output_gradient, rate)
            error = divergence(model, data, randomness, epoch, what)
            if error is not None:
                raise error
            for observer in observers:
                observer.epoch_end(epoch, model, epoch * steps_per_epoch)
    return model


def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Outputs (N, C) in evaluation mode, without gradients, in the model's dtype."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        result = torch.cat([model_outputs(model, inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)])
    model.train(was_training)
    return result


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no number is NaN or Inf."""
    # The smallest and the largest of each first, which NaN is where it is there: one wait for a GPU.
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors if t.numel()]
    ends = [end.double() for t in real for end in torch.aminmax(t)]
    return not ends or bool(torch.isfinite(torch.stack(ends)).all())


def divergence(model: nn.Module, data: Dataset, randomness: Randomness, epoch: int, what: str = "") -> NonFiniteError | None:
    """The error that tells of a parameter that is NaN or Inf after ``epoch``, with sample ids; None where all are finite."""
    if all_finite([p.detach() for p in model.parameters()]):
        return None
    bad = ~torch.isfinite(predict(model, data.inputs)).all(dim=1)
    ids = data.ids[bad.to(data.ids.device)][:5].tolist()
    of = f"{what}, " if what else ""
    return NonFiniteError(
        "training diverged: a parameter became NaN or Inf",
        where=f"{of}seed {randomness.seed}, epoch {epoch}; {int(bad.sum())} training rows now have non-finite outputs, first ids {ids}",
        expected="finite parameters",
        got="NaN or Inf",
        remedy="lower recipe.learning_rate, or look at the scale of the inputs",
    )
