"""The training loop. One loop for originals and retrainings, for one model and for several, so that they cannot differ by accident."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.losses import Loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.augmentation import Augmentation
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.graphs.base import StepGraphs
from genrep_dist.training.graphs.steps import GraphedSteps
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.resume import StateStore, pack_state, restore_state
from genrep_dist.training.step import PackStep


class Observer(Protocol):
    """Is called during training and changes nothing in it."""

    def start(self, model: nn.Module, num_rows: int, num_steps: int) -> None:
        """Before the first step, at the initial parameters."""

    def step(self, rows: Tensor, output_gradient: Tensor, rate: float) -> None:
        """After each step: ``rows`` (B,) positions in the training set, ``output_gradient`` (B, C) = dL/df / B, ``rate`` eta."""

    def epoch_end(self, epoch: int, model: nn.Module, next_step: int) -> None:
        """After epoch ``epoch`` (counted from 1); ``next_step`` is the number of steps done."""


@runtime_checkable
class StateObserver(Protocol):
    """An observer that is also told of the optimizer."""

    def optimizer_state(self, epoch: int, preconditioner: Callable[[], list[Tensor]]) -> None:
        """After :meth:`Observer.epoch_end`. ``preconditioner()`` is that of the observed model's parameters, in their shapes."""


@dataclass(frozen=True)
class TrainingRun:
    """One model to train: its random numbers, the rows (N,) bool that it keeps (None: all), and what it is, for error messages.

    ``rebatch``: the rows that it keeps are divided into new batches, as if no others existed. ``weights`` (N,) float64 of the rows in the
    loss, positive for those that it keeps (None: all are 1). ``targets`` (N, ...) in place of those of the data.
    """

    randomness: Randomness
    kept: Tensor | None = None
    description: str = ""
    rebatch: bool = False
    weights: Tensor | None = None
    targets: Tensor | None = None


def train(
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    randomness: Randomness,
    *,
    kept: Tensor | None = None,
    observers: Sequence[Observer] = (),
    fast_paths: FastPaths | None = None,
) -> nn.Module:
    """Train one model in place and return it, by :func:`train_models`. Raises NonFiniteError where it diverges."""
    runs = [TrainingRun(randomness, kept)]
    error = train_models([model], loss, recipe, data, runs, observers=observers, fast_paths=fast_paths)[0]
    if error is not None:
        raise error
    return model


def train_models(
    models: Sequence[nn.Module],
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    runs: Sequence[TrainingRun],
    *,
    kind: type[Pack] = Solo,
    observers: Sequence[Observer] = (),
    fast_paths: FastPaths | None = None,
    states: StateStore | None = None,
    graphs: StepGraphs | None = None,
) -> list[NonFiniteError | None]:
    """Train ``models`` in place, one for each of ``runs``, in one pack of ``kind``. Solo takes one model.

    Each epoch visits all N rows in the order that a run's ``randomness`` gives, cut into batches of ``recipe.batch_size``; with
    ``recipe.drop_last`` all but those of an incomplete last batch. Rows that a run does not keep drop out of the batch they would have
    been in, and the mean runs over the rows that remain. The other rows keep their place and their step, so a retraining shares its random
    numbers with the original run. A batch that loses all its rows changes nothing. The gradient of the mean loss enters through dL/df,
    which is exact and is what Eq. 10 accumulates.

    A run with ``rebatch`` visits the rows that it keeps in the same order, divided into new batches: fewer rows take fewer steps, and
    schedule and ``recipe.drop_last`` are those of so many rows. The runs of a pack then keep equally many rows.

    With weights the loss of a batch is its weighted mean, sum_i w_i L_i / sum_i w_i: a row of weight 0 would be one that is not kept.

    Packs of all kinds give the same models up to rounding. Stacked packs give the same bits in any size and company, mapped packs in
    packs of one size. ``observers`` see the first model.

    A model with a parameter that is NaN or Inf at the end of an epoch leaves the pack, and its error is returned in its place; the
    others go on unchanged. Training ends early when no model is left, or the observed one.

    With ``states`` a pack without observers begins at the last state that was saved, and saves others at the ends of epochs. It has the
    same bits as one that was not interrupted. No state is saved once a model has left.

    With ``graphs`` steps are captured and replayed where that is possible; results are equal up to rounding.
    """
    num_rows, device = len(data.inputs), data.inputs.device
    kept = torch.stack([_kept_rows(run, data) for run in runs])
    weights = _changed_weights(runs, data)
    batched = _batched_rows(runs, kept)
    steps_per_epoch = recipe.steps_per_epoch(batched)
    num_steps, visited = recipe.epochs * steps_per_epoch, min(batched, steps_per_epoch * recipe.batch_size)
    if not num_steps:
        raise _no_step(runs[0], batched, recipe)
    errors: list[NonFiniteError | None] = [None] * len(models)
    augmentation = None if recipe.augment is None else Augmentation(recipe.augment, data)
    pack = kind(models[0], len(models), make_optimizer(recipe), fast_paths or FastPaths())
    derivative = getattr(loss, "derivative_by_class", loss.derivative) if pack.has_narrow_products else loss.derivative
    pack_step = PackStep(pack, derivative, recipe, data, _changed_targets(runs, data), lambda slot: _title(runs[slot]))
    take = pack_step.take if graphs is None else GraphedSteps(pack_step, pack, graphs, num_steps).take
    for slot, model in enumerate(models):
        pack.load(slot, model)
    pack.seed([run.randomness.number("train") for run in runs])
    with runs[0].randomness.scope("train"), pack.while_training():
        for observer in observers:
            observer.start(models[0], num_rows, num_steps)
        pack.module.train()
        done = 0 if states is None or observers else _restored_epochs(pack, states)
        for epoch in range(done + 1, recipe.epochs + 1):
            orders = {run.randomness: run.randomness.order(epoch, num_rows) for run in runs}
            by_run = torch.stack([_visited(run, orders[run.randomness])[:visited] for run in runs]).to(device)
            for step in pack.steps(by_run, recipe.batch_size, kept, (epoch - 1) * steps_per_epoch, weights):
                rate = recipe.rate(step.index, num_steps)
                inputs: Tensor | None = None
                if augmentation is not None:
                    read = pack.rows_read(step)
                    inputs = augmentation.batch([run.randomness for run in runs[: len(read)]], read, epoch)
                output_gradient = take(step, rate, inputs)
                for observer in observers:
                    observer.step(*step.first_model(output_gradient), rate)
            if not all_finite([p.detach() for p in pack.parameters]):
                _remove_diverged(pack, models, data, runs, epoch, recipe.batch_size, errors)
                if None not in errors or (observers and errors[0] is not None):
                    return errors
            elif states is not None and not observers and not any(errors) and epoch < recipe.epochs and states.is_due():
                states.save(pack_state(pack, epoch))
            if observers:
                pack.unload(0, models[0])
            for observer in observers:
                observer.epoch_end(epoch, models[0], epoch * steps_per_epoch)
                if isinstance(observer, StateObserver):
                    observer.optimizer_state(epoch, lambda: pack.preconditioner(0, models[0]))
    for slot, model in enumerate(models):
        if errors[slot] is None:
            pack.unload(slot, model)
    return errors


def _restored_epochs(pack: Pack, states: StateStore) -> int:
    """Put the last state into the pack; the epochs that are done, 0 without a state that fits."""
    state = states.load()
    if state is None:
        return 0
    try:
        return restore_state(pack, state)
    except ValueError:
        return 0


def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Outputs (N, C) in evaluation mode, without gradients, in the model's dtype. Last bits depend on ``batch_size``."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        # Detached, because a scripted model, or one that enables gradients itself, returns outputs that require them.
        result = model_outputs(model, inputs[:batch_size]).detach()
        if len(inputs) > batch_size:
            first, result = result, result.new_empty(len(inputs), result.shape[1])
            result[:batch_size] = first
            for start in range(batch_size, len(inputs), batch_size):
                result[start : start + batch_size] = model_outputs(model, inputs[start : start + batch_size]).detach()
    model.train(was_training)
    return result


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or Inf."""
    # The smallest and the largest of each tensor, which are NaN if an element is: one synchronisation with a GPU for all tensors.
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors if t.numel()]
    ends = [end.double() for t in real for end in torch.aminmax(t)]
    return not ends or bool(torch.isfinite(torch.stack(ends)).all())


def _kept_rows(run: TrainingRun, data: Dataset) -> Tensor:
    """(N,) bool on the device of the data."""
    device = data.inputs.device
    return torch.ones(len(data.inputs), dtype=torch.bool, device=device) if run.kept is None else run.kept.to(device)


def _batched_rows(runs: Sequence[TrainingRun], kept: Tensor) -> int:
    """How many rows an epoch cuts into batches, the same for all ``runs``; ``kept`` (S, N)."""
    counts = {int(own.sum()) if run.rebatch else len(own) for run, own in zip(runs, kept, strict=True)}
    assert len(counts) == 1, counts
    return counts.pop()


def _changed_weights(runs: Sequence[TrainingRun], data: Dataset) -> Tensor | None:
    """(S, N) float64 on the device of the data; None where no run has weights."""
    if all(run.weights is None for run in runs):
        return None
    ones = torch.ones(len(data.inputs), dtype=torch.float64)
    return torch.stack([ones if run.weights is None else run.weights.to(ones) for run in runs]).to(data.inputs.device)


def _changed_targets(runs: Sequence[TrainingRun], data: Dataset) -> Tensor | None:
    """(S, N, ...); None where no run has targets of its own."""
    if all(run.targets is None for run in runs):
        return None
    return torch.stack([data.targets if run.targets is None else run.targets.to(data.targets) for run in runs])


def _visited(run: TrainingRun, order: Tensor) -> Tensor:
    """The rows of ``order`` (N,) that are cut into batches."""
    return order[run.kept.to(order.device)[order]] if run.rebatch and run.kept is not None else order


def _title(run: TrainingRun) -> str:
    """What a run is, for error messages."""
    return f"{run.description}, seed {run.randomness.seed}".removeprefix(", ")


def _no_step(run: TrainingRun, num_rows: int, recipe: Recipe) -> ProblemError:
    return ProblemError(
        "with drop_last no batch is left to train on",
        where=_title(run),
        expected=f"a batch_size of at most {num_rows}, the number of rows that remain",
        got=str(recipe.batch_size),
        remedy="lower recipe.batch_size, remove fewer rows, or set recipe.drop_last: false",
    )


def _remove_diverged(
    pack: Pack,
    models: Sequence[nn.Module],
    data: Dataset,
    runs: Sequence[TrainingRun],
    epoch: int,
    batch_size: int,
    errors: list[NonFiniteError | None],
) -> None:
    """Enter the error of each model that is no longer finite; in a pack where others remain, set it to zero."""
    for slot, (model, run) in enumerate(zip(models, runs, strict=True)):
        if errors[slot] is None:
            pack.unload(slot, model)
            errors[slot] = _divergence(model, data, run, epoch, batch_size)
    for slot, error in enumerate(errors):
        if error is not None and None in errors:
            pack.optimized.zero_slot(slot)


def _divergence(model: nn.Module, data: Dataset, run: TrainingRun, epoch: int, batch_size: int) -> NonFiniteError | None:
    """The error of a model with a parameter that is NaN or Inf after ``epoch``, with sample ids; None if all are finite."""
    if all_finite([p.detach() for p in model.parameters()]):
        return None
    bad = ~torch.isfinite(predict(model, data.inputs, batch_size=batch_size)).all(dim=1)
    ids = data.ids[bad.to(data.ids.device)][:5].tolist()
    return NonFiniteError(
        "training diverged: a parameter became NaN or Inf",
        where=f"{_title(run)}, epoch {epoch}; {int(bad.sum())} training rows now have non-finite outputs, first ids {ids}",
        expected="finite parameters",
        got="NaN or Inf",
        remedy="lower recipe.learning_rate, or look at the scale of the inputs",
    )
