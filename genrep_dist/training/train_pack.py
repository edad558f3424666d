"""The training loop for several models at once: one step of all of them, each with its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genrep_dist.core.losses import Loss
from genrep_dist.errors import NonFiniteError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.batches import GATHER_BYTES
from genrep_dist.training.loop import Observer, all_finite, divergence
from genrep_dist.training.pack import Pack, PackKind, filled
from genrep_dist.training.precision import tf32, training_outputs
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.sgd import Descent
from genrep_dist.training.vmap_pack import MappedPack


@dataclass(frozen=True)
class Run:
    """One model to train: its random numbers, the rows (N,) bool that it keeps (None: all), and what it is, for messages."""

    randomness: Randomness
    kept: Tensor | None = None
    what: str = ""


@dataclass(frozen=True)
class Steps:
    """The steps of one epoch that have the same number of rows, for S models.

    ``rows`` (steps, S, B) positions in the training set and ``marks`` (steps, S, B), whether a row counts. Elsewhere stands a row that
    the model keeps: what it removes is never read. ``sizes`` (steps, S) counts the marks.
    """

    first_step: int
    rows: Tensor
    marks: Tensor
    sizes: Tensor


def train_pack(
    models: Sequence[nn.Module],
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    runs: Sequence[Run],
    *,
    observers: Sequence[Observer] = (),
    kind: PackKind = Pack,
) -> list[NonFiniteError | None]:
    """Train ``models`` in place, as :func:`genrep_dist.training.loop.train` trains each, up to rounding; packed together or alone they
    are the same, bit for bit (of the ``kind`` MappedPack in packs of one size). ``observers`` see the first.

    A model that diverges is taken out at the end of its epoch and its error is returned in its place; the others go on untouched.
    """
    num_rows, slots = len(data.inputs), len(models)
    steps_per_epoch = -(-num_rows // recipe.batch_size)
    num_steps = recipe.epochs * steps_per_epoch
    pack = kind(models[0], slots, recipe)
    for slot, model in enumerate(models):
        pack.load(slot, model)
    descent = Descent(pack.parameters, recipe)
    state = pack.of_slots(descent.state)
    errors: list[NonFiniteError | None] = [None] * slots
    for observer in observers:
        observer.start(models[0], num_rows, num_steps)
    kept = _kept(runs, data)
    for epoch in range(1, recipe.epochs + 1):
        for steps in _epoch(runs, kept, epoch, recipe.batch_size, (epoch - 1) * steps_per_epoch):
            _train_steps(pack, loss, recipe, data, steps, descent, state, num_steps, observers)
        if not all_finite([p.detach() for p in pack.parameters]):
            _take_out(pack, models, data, runs, epoch, state, errors)
        if observers:
            pack.unload(0, models[0])
            if errors[0] is not None:
                return errors
            for observer in observers:
                observer.epoch_end(epoch, models[0], epoch * steps_per_epoch)
    for slot, model in enumerate(models):
        if errors[slot] is None:
            pack.unload(slot, model)
    return errors


def _kept(runs: Sequence[Run], data: Dataset) -> Tensor:
    """Which rows each model keeps: (S, N) bool."""
    everything = torch.ones(len(data.inputs), dtype=torch.bool, device=data.inputs.device)
    return torch.stack([everything if run.kept is None else run.kept.to(everything.device) for run in runs])


def _epoch(runs: Sequence[Run], kept: Tensor, epoch: int, batch_size: int, first_step: int) -> list[Steps]:
    """All steps of one epoch: the whole batches, and what is left at the end."""
    slots, num_rows = kept.shape
    by_randomness = {run.randomness: run.randomness.order(epoch, num_rows) for run in runs}
    order = torch.stack([by_randomness[run.randomness] for run in runs]).to(kept.device)
    marks = kept.gather(1, order)
    # In the place of a removed row stands the first that is kept, with no weight: shapes stay, and no number of a removed row is read.
    stand_in = kept.to(torch.uint8).argmax(dim=1, keepdim=True)
    rows = torch.where(marks, order, stand_in)
    found, whole = [], num_rows // batch_size * batch_size
    for start, stop in ((0, whole), (whole, num_rows)):
        if start == stop:
            continue
        size = min(batch_size, stop - start)
        extra = filled(size) - size
        some = [part[:, start:stop].reshape(slots, -1, size).transpose(0, 1) for part in (rows, marks)]
        padding = stand_in.expand(len(some[0]), slots, 1).expand(-1, -1, extra)
        filled_rows = torch.cat([some[0], padding], dim=2)
        filled_marks = torch.cat([some[1], padding.new_zeros(padding.shape, dtype=torch.bool)], dim=2)
        found.append(Steps(first_step + start // batch_size, filled_rows, filled_marks, some[1].sum(dim=2)))
    return found


def _train_steps(
    pack: Pack | MappedPack,
    loss: Loss,
    recipe: Recipe,
    data: Dataset,
    steps: Steps,
    descent: Descent,
    state: list[Tensor],
    num_steps: int,
    observers: Sequence[Observer],
) -> None:
    per_gather = max(1, GATHER_BYTES // max(1, steps.rows[0].numel() * data.inputs[:1].numel() * data.inputs.element_size()))
    idle = _idle(steps.sizes) if descent.moves_without_gradient else {}
    for begin in range(0, len(steps.rows), per_gather):
        rows, marks = (part[begin : begin + per_gather] for part in (steps.rows, steps.marks))
        flat = rows.flatten(1)
        all_inputs, all_targets = data.inputs[flat], data.targets[flat]
        divisors: Tensor | None = None
        for index in range(len(rows)):
            with tf32(recipe):
                outputs = training_outputs(pack.module, all_inputs[index], recipe)
                if divisors is None:
                    # Divided by infinity, what stands in for a removed row adds exactly nothing.
                    sizes = steps.sizes[begin : begin + per_gather].unsqueeze(2).to(outputs.dtype)
                    divisors = torch.where(marks, sizes, float("inf")).flatten(1).unsqueeze(2)
                step = steps.first_step + begin + index
                rate = recipe.rate(step, num_steps)
                output_gradient = loss.derivative(outputs.detach(), all_targets[index]) / divisors[index]
                gradients = torch.autograd.grad(outputs, pack.parameters, output_gradient, allow_unused=True)
            unmoved = idle.get(begin + index)
            before = [(tensor, tensor[unmoved].clone()) for tensor in state] if unmoved else []
            descent.step(gradients, rate)
            for tensor, values in before:
                tensor[unmoved] = values
            for observer in observers:
                mine = marks[index, 0]
                observer.step(rows[index, 0][mine], output_gradient[: len(mine)][mine], rate)


def _idle(sizes: Tensor) -> dict[int, list[int]]:
    """For each step the slots that have lost all their rows of it: momentum and weight decay must not move them either."""
    found: dict[int, list[int]] = {}
    for step, slot in (sizes == 0).nonzero().tolist():
        found.setdefault(step, []).append(slot)
    return found


def _take_out(
    pack: Pack | MappedPack,
    models: Sequence[nn.Module],
    data: Dataset,
    runs: Sequence[Run],
    epoch: int,
    state: list[Tensor],
    errors: list[NonFiniteError | None],
) -> None:
    """Note the error of each slot that is no longer finite, and set it to zero: it takes part in nothing any more."""
    for slot, (model, run) in enumerate(zip(models, runs, strict=True)):
        if errors[slot] is not None:
            continue
        pack.unload(slot, model)
        errors[slot] = divergence(model, data, run.randomness, epoch, run.what)
        if errors[slot] is not None:
            for tensor in state:
                tensor[slot] = 0
