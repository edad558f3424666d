"""How a problem's models are trained: in which arithmetic, which is a matter of the problem, and how many at a time, of the machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.losses import Loss
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.loop import Observer, train
from genrep_dist.training.microbatches import rows_at_once
from genrep_dist.training.pack import CPU_PACK_BYTES, Pack, PackKind, why_not_packed
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.train_pack import Run, train_pack
from genrep_dist.training.vmap_pack import MAPPED_SLOTS, MappedPack

Arithmetic = Literal["solo", "stacked", "mapped"]

MAX_WORK: dict[PackKind, int] = {Pack: 2**24, MappedPack: 3 * 2**20}
"""Multiply-adds of a forward pass over a batch, above which a CPU trains models one by one: there the arithmetic costs more than the
calls, and a library's own convolutions are faster than unfolded products, or mapped ones."""
MAX_PACK = {"cpu": 64, "cuda": 512}
USUAL_PACK = 16
WORTH_A_PROBE = 5000
"""Steps of single models that are to come, below which no pack size is measured: the measurement is some 1,500."""
PROBE_STEPS = 4
WORTHWHILE = 0.97
"""A larger pack must take less than this share of the time a model, or the smaller one stays."""
MEMORY_SHARE = 0.6
"""Of a GPU's free memory, for a pack."""


def arithmetic_of(
    factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset
) -> tuple[Arithmetic, PackKind | None, str | None]:
    """How models of ``factory`` are trained on the device of ``data``, in which packs, or why alone. Nothing that is timed decides it."""
    kinds: dict[Arithmetic, PackKind] = {"stacked": Pack, "mapped": MappedPack}
    reasons = []
    for arithmetic, kind in kinds.items():
        # A GPU has room for the steps of many models however large their arithmetic.
        reason = why_not_packed(factory, loss, recipe, data, kind, MAX_WORK[kind] if data.inputs.device.type == "cpu" else None)
        if reason is None:
            return arithmetic, kind, None
        reasons.append(reason)
    return "solo", None, "; mapped: ".join(dict.fromkeys(reasons))


def most_models(arithmetic: Arithmetic, parameter_bytes: int) -> int:
    """How many models at most share a step on a CPU."""
    if arithmetic == "mapped":
        return MAPPED_SLOTS
    return max(1, min(MAX_PACK["cpu"], CPU_PACK_BYTES // parameter_bytes)) if arithmetic == "stacked" else 1


class Trainer:
    """Trains models of one problem with one recipe.

    ``arithmetic`` is "stacked" where models can share their steps and gain by it, "mapped" where their layers are none of those that are
    known and they share steps through torch's mapping, else "solo", for the ``reason`` given. It follows from the model, the loss, the
    recipe and the kind of device, and from nothing that is timed, so that an original model and its retrainings are computed alike on all
    workers. :meth:`pack_size` is timed, and changes no number.
    """

    def __init__(self, factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset) -> None:
        self._factory, self._loss, self._recipe, self._data = factory, loss, recipe, data
        self._device = data.inputs.device
        self._pack_size: int | None = None
        if recipe.precision == "tf32" and self._device.type != "cuda":
            # It would be computed in full, under the key of what is rounded.
            raise ProblemError(
                "no training in tf32 without a GPU",
                where="recipe.precision",
                expected="'full' or 'bfloat16'",
                got=f"'tf32' on {self._device.type}",
                remedy="set recipe.precision, or resources.device: cuda",
            )
        check_model(self.build(Randomness(0)))
        self.arithmetic, kind, self.reason = arithmetic_of(factory, loss, recipe, data)
        self._kind: PackKind = kind or Pack
        self._at_once = rows_at_once(factory, loss, recipe, data) if self.reason else None

    def build(self, randomness: Randomness) -> nn.Module:
        return randomness.build(self._factory).to(self._device)

    def train(self, run: Run, observers: Sequence[Observer] = ()) -> nn.Module:
        """One trained model. Raises NonFiniteError where it diverges."""
        model = self.build(run.randomness)
        error = self.train_in_place([model], [run], observers)[0]
        if error is not None:
            raise error
        return model

    def train_all(self, runs: Sequence[Run]) -> list[nn.Module | NonFiniteError]:
        """The trained model of each run, or the error of the one that diverged. At most :meth:`pack_size` at a time is wise."""
        # Runs with common random numbers begin alike.
        initial = {run.randomness: self.build(run.randomness) for run in runs}
        models = [copy.deepcopy(initial[run.randomness]) for run in runs]
        errors = self.train_in_place(models, runs)
        return [model if error is None else error for model, error in zip(models, errors, strict=True)]

    def pack_size(self, models: int | None = None) -> int:
        """How many models to train at once on this machine: measured once, in about a second.

        Where only so few ``models`` are to come that measuring would take longer than it saves, it is a guess.
        """
        if self.arithmetic == "solo":
            return 1
        if self._is_filled:
            return MAPPED_SLOTS
        if self._pack_size is None and models is not None and models * self._num_steps() < WORTH_A_PROBE:
            return min(USUAL_PACK, self._largest())
        if self._pack_size is None:
            self._pack_size = self._probe()
        return self._pack_size

    def seconds_per_model(self, pack_size: int | None = None) -> float:
        """What one model takes here, at ``pack_size`` (default: that in force), from a few steps."""
        return self._seconds_a_step(pack_size or self.pack_size()) * self._num_steps()

    def _num_steps(self) -> int:
        """Steps of one training."""
        return self._recipe.epochs * -(-len(self._data.inputs) // self._recipe.batch_size)

    def train_in_place(
        self, models: list[nn.Module], runs: Sequence[Run], observers: Sequence[Observer] = ()
    ) -> list[NonFiniteError | None]:
        """Train ``models``, each built for its run; the errors of those that diverged in their places. ``observers`` are for one model."""
        if self.arithmetic != "solo":
            return self._train_packs(models, runs, observers)
        errors: list[NonFiniteError | None] = []
        for model, run in zip(models, runs, strict=True):
            try:
                self._train_solo(model, run, self._recipe, self._data, observers)
                errors.append(None)
            except NonFiniteError as error:
                errors.append(error)
        return errors

    @property
    def _is_filled(self) -> bool:
        """Whether packs have one size only, and empty slots are filled."""
        return self.arithmetic == "mapped" and self._device.type == "cpu"

    def _train_packs(self, models: Sequence[nn.Module], runs: Sequence[Run], observers: Sequence[Observer]) -> list[NonFiniteError | None]:
        size = MAPPED_SLOTS if self._is_filled else len(models)
        errors: list[NonFiniteError | None] = []
        for start in range(0, len(models), size):
            some, their = list(models[start : start + size]), list(runs[start : start + size])
            empty = size - len(some) if self._is_filled else 0
            fill = [copy.deepcopy(some[0]) for _ in range(empty)]
            everyone, all_runs = some + fill, their + their[:1] * empty
            found = train_pack(everyone, self._loss, self._recipe, self._data, all_runs, observers=observers, kind=self._kind)
            errors += found[: len(some)]
        return errors

    def _train_solo(self, model: nn.Module, run: Run, recipe: Recipe, data: Dataset, observers: Sequence[Observer] = ()) -> None:
        kept = None if run.kept is None else run.kept.to(self._device)
        train(model, self._loss, recipe, data, run.randomness, kept=kept, observers=observers, what=run.what, at_once=self._at_once)

    def _probe(self) -> int:
        best, size, seconds = 1, 1, self._seconds_a_step(1)
        largest = self._largest()
        while size * 2 <= largest:
            size *= 2
            took = self._seconds_a_step(size)
            if took > seconds * 1.15:
                break
            if took < seconds * WORTHWHILE:
                best, seconds = size, took
        return best

    def _largest(self) -> int:
        return min(MAX_PACK.get(self._device.type, 1), self._room())

    def _room(self) -> int:
        """How many models of a pack the memory holds: a GPU's free memory; on a CPU what its caches are good for."""
        if self._device.type != "cuda":
            return most_models(self.arithmetic, sum(p.numel() * p.element_size() for p in self.build(Randomness(0)).parameters()))
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._seconds_a_step(2)
        each = (torch.cuda.max_memory_allocated(self._device) - before) / 2
        free, _ = torch.cuda.mem_get_info(self._device)
        return max(1, int(MEMORY_SHARE * free / max(each, 1.0)))

    def _seconds_a_step(self, size: int) -> float:
        """Seconds of a step of ``size`` models at once, divided by ``size``: the best of a few short runs on whole batches."""
        rows = min(len(self._data.inputs), PROBE_STEPS * self._recipe.batch_size)
        data = Dataset(self._data.inputs[:rows], self._data.targets[:rows], self._data.ids[:rows])
        short = replace(self._recipe, epochs=1)
        steps = -(-rows // self._recipe.batch_size)
        slots = MAPPED_SLOTS if self._is_filled else size
        runs = [Run(Randomness(0))] * slots
        models = [self.build(Randomness(0)) for _ in range(slots)]
        best = float("inf")
        for _ in range(3):
            self._synchronize()
            began = time.perf_counter()
            if self.arithmetic != "solo":
                train_pack(models, self._loss, short, data, runs, kind=self._kind)
            else:
                self._train_solo(models[0], runs[0], short, data)
            self._synchronize()
            best = min(best, (time.perf_counter() - began) / (steps * size))
        return best

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
