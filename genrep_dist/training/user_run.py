"""What a problem's own training function gets: the kept samples as a torch data set, and ``run`` with its optional hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.utils.data
from torch import Tensor, nn

from genrep_dist.core.generators import write_generators
from genrep_dist.core.gradients.model import as_outputs
from genrep_dist.core.inputs import unpacked, unpacked_row
from genrep_dist.core.losses import Loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.observers import TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.resume import StateStore, decoded, encoded

COUNT_FROM_ONE = "run.checkpoint(epoch + 1, model)"


class KeptSamples(torch.utils.data.Dataset[tuple[Any, Tensor]]):
    """The samples that a model is trained on, in the order of the training set: no removed sample is among them.

    An item is (input, target), on the CPU; a slice, list or tensor of positions gives a batch of both. ``inputs`` (n, ...), ``targets``
    (n, ...) and ``ids`` (n,) are the same as tensors. Inputs of several tensors come as the problem gives them, such as in a dictionary.
    All are copies: what is changed in place changes no other training.
    """

    def __init__(self, data: Dataset, kept: Tensor) -> None:
        """``kept`` (N,) bool: which rows of ``data``."""
        self._data, self._rows = data, torch.nonzero(kept.cpu()).reshape(-1)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> tuple[Any, Tensor]:
        rows = self._rows[index]
        if rows.dim():
            return unpacked(self._data.inputs[rows].cpu()), self._data.targets[rows].cpu()
        # A plain index gives a view of the samples that all trainings share.
        return unpacked_row(self._data.inputs[rows].clone().cpu()), self._data.targets[rows].clone().cpu()

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        return (self[position] for position in range(len(self)))

    @cached_property
    def inputs(self) -> Any:
        return unpacked(self._data.inputs[self._rows].cpu())

    @cached_property
    def targets(self) -> Tensor:
        return self._data.targets[self._rows].cpu()

    @cached_property
    def ids(self) -> Tensor:
        return self._data.ids[self._rows].clone()


@dataclass
class Record:
    """What is kept of one training by a problem's function.

    ``wanted``: epochs whose parameters are kept. ``states``: state dictionaries by epoch, 0 as initialised; ``rates``: the learning rates
    that were given with them. ``seen``: all epochs of which a checkpoint was taken. ``tracking``: Eq. 10's sums; None if not wanted.
    """

    wanted: frozenset[int] = frozenset()
    tracking: TrackingImportance | None = None
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    last_rate: float | None = None
    has_steps: bool = False
    reads_weights: bool = False

    def keep(self, epoch: int, model: nn.Module) -> None:
        self.seen.add(epoch)
        if epoch in self.wanted:
            self.states[epoch] = {name: value.detach().clone() for name, value in model.state_dict().items()}


class UserRun:
    """``run`` of ``train(model, data, run)``. All its methods are optional to call, and change nothing in the training.

    ``seed``: an integer below 2^31, the same for all retrainings with common random numbers, for generators of your own; the default
    generators of Python, numpy and torch are seeded already. ``device``: where to train. ``recipe``: the recipe in force; ``epochs``: its
    epochs, None if neither problem nor experiment has a recipe.
    """

    def __init__(
        self,
        data: Dataset,
        kept: Tensor,
        randomness: Randomness,
        recipe: Recipe,
        epochs: int | None,
        loss: Loss,
        record: Record | None = None,
        *,
        rebatch: bool = False,
        weights: Tensor | None = None,
        states: StateStore | None = None,
    ) -> None:
        self.seed = randomness.number("train function") % 2**31
        self.device, self.epochs, self.recipe = data.inputs.device, epochs, recipe
        self._data, self._kept, self._randomness, self._loss, self._record = data, kept.cpu(), randomness, loss, record
        self._rebatch, self._epochs_begun = rebatch, 0
        self._weights, self._states = weights, states
        self.reads_weights = False
        self._initial: dict[str, Tensor] | None = None
        self._rows_by_id: dict[int, int] | None = None

    def begin(self, model: object) -> None:
        """Keep the initial parameters. Called before the training function."""
        if self._record is None or not isinstance(model, nn.Module):
            return
        self._record.keep(0, model)
        self._initial = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if self._record.tracking is not None:
            self._record.tracking.start(model, len(self._data.ids), 0)

    def batches(self, batch_size: int, epoch: int | None = None, *, drop_last: bool = False) -> Iterator[Dataset]:
        """The batches (inputs, targets, ids) of one epoch on :attr:`device`, in the order in which a recipe would visit the rows.

        Each call is the next epoch, or ``epoch``, counted from 1. A removed row drops out of the batch that it would have been in; a batch
        that loses all its rows is left out. With `retrain: rebatch` the rows that remain are divided into new batches. ``drop_last`` leaves
        out the last batch if it is smaller than the others before any row drops out.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise _wrong("run.batches", "a batch size of at least 1", repr(batch_size), "pass the number of samples of a batch")
        self._epochs_begun = self._epochs_begun + 1 if epoch is None else epoch
        order = self._randomness.order(self._epochs_begun, len(self._data.ids))
        if self._rebatch:
            order = order[self._kept[order]]
        visited = len(order) // batch_size * batch_size if drop_last else len(order)
        return self._batches(torch.split(order[:visited], batch_size))

    def _batches(self, parts: Iterable[Tensor]) -> Iterator[Dataset]:
        for part in parts:
            rows = part[self._kept[part]]
            if len(rows):
                on_device = rows.to(self.device)
                yield Dataset(unpacked(self._data.inputs[on_device]), self._data.targets[on_device], self._data.ids[rows])

    def weights(self, ids: Tensor) -> Tensor:
        """The weights (B,) float32 of the samples ``ids`` (B,) in the loss, on :attr:`device`: 1 where nothing else is asked for.

        The loss of a batch is then sum_i w_i L_i / sum_i w_i.
        """
        self.reads_weights = True
        if self._record is not None:
            self._record.reads_weights = True
        rows = self._positions(ids, "run.weights")
        return torch.ones(len(rows), device=self.device) if self._weights is None else self._weights.to(self.device)[rows].float()

    def checkpoint(self, epoch: int, model: nn.Module, rate: float | None = None) -> None:
        """Keep the parameters after ``epoch`` epochs, counted from 1, for kernels at checkpoints and TracInCP.

        ``rate``: the learning rate at which training goes on, which TracInCP multiplies with; by default that of the last
        :meth:`step`, else the recipe's. The initial and the final parameters are kept without a call.
        """
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0 or not isinstance(model, nn.Module):
            got = f"{epoch!r}, {type(model).__name__}"
            raise _wrong("run.checkpoint", "an epoch of 0 or more, and the module that is trained", got, COUNT_FROM_ONE)
        if self._record is None:
            return
        if epoch == 0:
            if not self._is_initial(model):
                expected = "epochs counted from 1: epoch 0 is the initial model"
                raise _wrong("run.checkpoint", expected, "epoch 0 with trained parameters", f"call `{COUNT_FROM_ONE}`")
            return
        self._record.keep(epoch, model)
        used = self._record.last_rate if rate is None else _finite("run.checkpoint", rate)
        self._record.rates[epoch] = self.recipe.learning_rate if used is None else used

    def save_state(self, state: Any) -> None:
        """Keep ``state`` in case that this training is killed: what :meth:`saved_state` will return when it begins again.

        Such as ``{"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}``: tensors, numbers, texts, lists,
        tuples and dictionaries. The default generators are kept with it. Nothing happens unless ``resources.checkpoint_seconds`` have
        passed since the last state, and nothing for an original model.
        """
        if self._states is None or not self._states.is_due():
            return
        data = encoded([self._epochs_begun, state])
        try:
            decoded(data)
        except ValueError:
            expected = "tensors, numbers, texts, lists, tuples and dictionaries"
            raise _wrong("run.save_state", expected, f"{type(state).__name__} with something else in it", "save state_dict()s") from None
        self._states.save(data)

    def saved_state(self) -> Any:
        """The last state of :meth:`save_state` in an attempt of this training that was killed, with tensors on the CPU; else None.

        The default generators, and the epoch that :meth:`batches` counts, are set to where they were.
        """
        data = None if self._states is None else self._states.load()
        if data is None:
            return None
        try:
            (self._epochs_begun, state), generators = decoded(data)
        except (TypeError, ValueError):
            return None
        write_generators(generators)
        return state

    def step(self, ids: Tensor, outputs: Tensor | None, rate: float, *, derivative: Tensor | None = None) -> None:
        """Add one step of gradient descent to Eq. 10's sums: the samples ``ids`` (B,), their ``outputs`` before it, its learning rate.

        The derivative of the batch's mean loss is taken by the problem's loss at ``outputs`` (B,) or (B, C). If training follows another
        loss, pass ``outputs=None`` and ``derivative`` (B, C), the gradient of the loss that was differentiated in the outputs, as
        ``outputs.grad`` has it after ``outputs.retain_grad()``.
        """
        if self._record is None:
            return
        self._record.last_rate, self._record.has_steps = _finite("run.step", rate), True
        if self._record.tracking is None:
            return
        rows = self._positions(ids, "run.step")
        if derivative is None:
            if outputs is None:
                raise _wrong("run.step", "outputs, or derivative=...", "neither", "call `run.step(ids, outputs, rate)`")
            found = as_outputs(outputs, len(rows)).detach().to(self.device)
            derivative = self._loss.derivative(found, self._data.targets[rows]) / len(rows)
        self._record.tracking.step(rows, as_outputs(derivative.detach(), len(rows)).to(self.device), float(rate))

    def _positions(self, ids: Tensor, hook: str) -> Tensor:
        """Rows (B,) of the training set, on its device. ``hook`` was called with ``ids``, for the error."""
        if self._rows_by_id is None:
            self._rows_by_id = {int(self._data.ids[row]): row for row in torch.nonzero(self._kept).reshape(-1).tolist()}
        wanted = torch.as_tensor(ids).reshape(-1).tolist()
        unknown = [sample for sample in wanted if sample not in self._rows_by_id]
        if unknown or not wanted:
            got = f"ids {unknown[:5]}" if unknown else "no ids"
            raise _wrong(hook, "ids of samples of `data`", got, "pass data.ids[positions], or the ids that run.batches yields")
        return torch.tensor([self._rows_by_id[sample] for sample in wanted], device=self.device)

    def _is_initial(self, model: nn.Module) -> bool:
        state = model.state_dict()
        initial = self._initial or {}
        return state.keys() == initial.keys() and all(torch.equal(state[name], value) for name, value in initial.items())


def _finite(where: str, rate: object) -> float:
    try:
        value = float(rate)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise _wrong(where, "a learning rate: a finite number, 0 or more", repr(rate), "pass optimizer.param_groups[0]['lr']")
    return value


def _wrong(where: str, expected: str, got: str, remedy: str) -> ProblemError:
    return ProblemError(
        "the training function calls a hook with wrong arguments", where=f"train(), {where}", expected=expected, got=got, remedy=remedy
    )
