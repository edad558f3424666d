"""How a problem's models are trained: in which kind of pack, which depends on the problem, and how many at a time, on the machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import check_model
from genrep_dist.core.losses import Loss
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import NonFiniteError, ProblemError
from genrep_dist.problems.protocol import Dataset, Recipe
from genrep_dist.training.divergence import name_culprits
from genrep_dist.training.fast_paths import FastPaths
from genrep_dist.training.flop_count import MODEL_ERRORS
from genrep_dist.training.graphs.base import StepGraphs
from genrep_dist.training.loop import Observer, TrainingRun, train_models
from genrep_dist.training.optimizers import make_optimizer
from genrep_dist.training.packs.base import Pack, Solo
from genrep_dist.training.packs.compatibility import CPU_PACK_BYTES, has_narrow_products, why_not_packed
from genrep_dist.training.packs.mapped import MAPPED_SLOTS, MappedPack
from genrep_dist.training.packs.shared import SharedPack
from genrep_dist.training.packs.stacked import StackedPack
from genrep_dist.training.precision import training_outputs
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.resume import StateStores
from genrep_dist.training.sharing_trial import why_not_shared
from genrep_dist.training.torch_private import peak_tensor_bytes, vector_jacobian_product

PackKind = Literal["solo", "stacked", "mapped"]
PACKS: dict[PackKind, type[Pack]] = {"solo": Solo, "stacked": StackedPack, "mapped": MappedPack}

MAX_MULTIPLY_ADDS: dict[PackKind, int] = {"stacked": 2**24, "mapped": 3 * 2**20}
"""Multiply-adds of a forward pass over a batch, above which a CPU trains models one by one: the products then cost more than the calls,
and a library's own convolutions are faster than unfolded or mapped ones."""
MAX_SLOTS = {"cpu": 64, "cuda": 512}
DEFAULT_SLOTS = 16
MIN_STEPS_TO_PROBE = 5000
"""Steps of single models still to come, below which no pack size is measured: the measurement takes about 1,500."""
PROBE_STEPS = 4
LARGER_PACK_TIME = 0.97
"""A larger pack is chosen if it takes less than this share of the smaller one's time per model."""
GPU_MEMORY_SHARE = 0.6
"""Share of a GPU's free memory that a pack may take."""


def choose_pack_kind(
    factory: Callable[[], nn.Module], loss: Loss, recipe: Recipe, data: Dataset, fast_paths: FastPaths | None = None
) -> tuple[PackKind, str | None]:
    """The kind of pack in which models of ``factory`` train on the device of ``data``, and why solo. Nothing that is timed decides it."""
    fast_paths = fast_paths or FastPaths()
    allowed: dict[PackKind, bool] = {"stacked": fast_paths.stacked_packs, "mapped": fast_paths.mapped_packs}
    reasons = []
    for kind, is_allowed in allowed.items():
        # A GPU has room for the steps of many models however large they are.
        most = MAX_MULTIPLY_ADDS[kind] if data.inputs.device.type == "cpu" else None
        reason = why_not_packed(factory, loss, recipe, data, PACKS[kind], most, fast_paths) if is_allowed else "switched off"
        if reason is None:
            return kind, None
        reasons.append(reason)
    return "solo", "; mapped: ".join(dict.fromkeys(reasons))


def max_models_per_step(kind: PackKind, parameter_bytes: int) -> int:
    """How many models of ``parameter_bytes`` each share a step on a CPU at most."""
    if kind == "mapped":
        return MAPPED_SLOTS
    return max(1, min(MAX_SLOTS["cpu"], CPU_PACK_BYTES // parameter_bytes)) if kind == "stacked" else 1


def training_step_bytes(kind: PackKind, model: nn.Module, recipe: Recipe, inputs: Tensor, num_rows: int) -> int:
    """Bytes that a step of one model on ``num_rows`` rows takes beside its parameters, approximately; 0 where they cannot be counted.

    It follows from steps on two and on four rows like ``inputs`` (2, ...). A model with ``trains_alone`` takes none.
    """
    if getattr(model, "trains_alone", False):
        return 0

    def measure(rows: Tensor) -> int | None:
        pack = PACKS[kind](copy.deepcopy(model).train(), 1, make_optimizer(recipe), FastPaths())

        def step() -> None:
            outputs = training_outputs(pack.module, rows, recipe)
            vector_jacobian_product(outputs, pack.parameters, torch.ones_like(outputs), allow_unused=True)

        with torch.random.fork_rng(devices=[]), pack.while_training():
            return peak_tensor_bytes(step)

    try:
        few, more = measure(inputs[:2]), measure(torch.cat([inputs[:2], inputs[:2]]))
    except OUT_OF_MEMORY:
        raise
    except MODEL_ERRORS:
        return 0
    return 0 if few is None or more is None else max(few, few + (num_rows - 2) * (more - few) // 2)


class Trainer:
    """Trains models of one problem with one recipe.

    ``pack_kind`` is "stacked" where models can share their steps and gain by it, "mapped" where only ``torch.func.vmap`` can compute
    their layers together, else "solo", for ``solo_reason``. It follows from the model, the loss, the recipe, the kind of device and
    ``fast_paths``, and from nothing that is timed, so that original models and retrainings are computed alike on all workers.
    :meth:`pack_size` is timed, and changes no number. ``shares_batches``: stacked models that visit the same batches read them once.
    ``graphs``: how steps of packs are captured and replayed; None: each is taken by itself.

    Raises ProblemError for a model that breaks the protocol and for TF32 without a GPU; ConfigError for an unknown optimizer.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        loss: Loss,
        recipe: Recipe,
        data: Dataset,
        fast_paths: FastPaths | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        self.graphs = graphs
        self._factory, self._loss, self._recipe, self._data, self._fast_paths = factory, loss, recipe, data, fast_paths
        self._device = data.inputs.device
        self._pack_size: int | None = None
        if recipe.precision == "tf32" and self._device.type != "cuda":
            # A CPU would compute in full precision, under the key of rounded numbers.
            raise ProblemError(
                "no training in tf32 without a GPU",
                where="recipe.precision",
                expected="'full' or 'bfloat16'",
                got=f"'tf32' on {self._device.type}",
                remedy="set recipe.precision, or resources.device: cuda",
            )
        check_model(self.build(Randomness(0)))
        self.pack_kind, self.solo_reason = choose_pack_kind(factory, loss, recipe, data, fast_paths)
        may_share = self.pack_kind == "stacked" and (fast_paths or FastPaths()).shared_batches
        self.shares_batches = may_share and why_not_shared(factory, loss, recipe, data, fast_paths) is None
        self._is_narrow = self.shares_batches and has_narrow_products(factory, recipe)
        # On a CPU the number of mapped slots is fixed, as last bits may depend on it, and empty slots are filled with copies.
        mapped = MAPPED_SLOTS if self._device.type == "cpu" else None
        self._fixed_slots: int | None = {"solo": 1, "mapped": mapped}.get(self.pack_kind)

    def build(self, randomness: Randomness) -> nn.Module:
        """A model with its initial parameters, on the device of the data."""
        return randomness.build(self._factory).to(self._device)

    def train(self, run: TrainingRun, observers: Sequence[Observer] = ()) -> nn.Module:
        """One trained model. Raises NonFiniteError where it diverges, with the samples whose gradients are not finite."""
        model = self.build(run.randomness)
        error = self.train_in_place([model], [run], observers)[0]
        if error is not None:
            raise name_culprits(error, lambda observer: self._repeat(run, observer), self._loss, self._data)
        return model

    def _repeat(self, run: TrainingRun, observer: Observer) -> object:
        """Train one model again, alone, so that ``observer`` sees its parameters after every step."""
        model = self.build(run.randomness)
        return train_models([model], self._loss, self._recipe, self._data, [run], observers=[observer], fast_paths=self._fast_paths)

    def train_all(self, runs: Sequence[TrainingRun], states: StateStores | None = None) -> list[nn.Module | NonFiniteError]:
        """The trained model of each run, or the error of one that diverged. Memory grows with ``runs``: pass :meth:`pack_size` of them.

        ``states`` keep the state of each pack while it trains. The ``description`` of each run must tell it from all others.
        """
        # Runs with common random numbers have the same initial model. A model that trains alone need not support copies.
        initial: dict[Randomness, nn.Module] = {}
        models = [
            copy.deepcopy(initial[run.randomness])
            if run.randomness in initial
            else initial.setdefault(run.randomness, self.build(run.randomness))
            for run in runs
        ]
        errors = self.train_in_place(models, runs, states=states)
        return [model if error is None else error for model, error in zip(models, errors, strict=True)]

    def train_in_place(
        self,
        models: Sequence[nn.Module],
        runs: Sequence[TrainingRun],
        observers: Sequence[Observer] = (),
        states: StateStores | None = None,
    ) -> list[NonFiniteError | None]:
        """Train ``models``, each built for its run; the errors of those that diverged in their places. ``observers`` are for one model."""
        slots = self._fixed_slots or len(models)
        errors: list[NonFiniteError | None] = []
        for start in range(0, len(models), slots):
            some, their = list(models[start : start + slots]), list(runs[start : start + slots])
            empty = slots - len(some)
            copies = [copy.deepcopy(some[0]) for _ in range(empty)]
            found = self._train_pack(some + copies, their + their[:1] * empty, self._recipe, self._data, observers, states)
            errors += found[: len(some)]
        return errors

    def _train_pack(
        self,
        models: Sequence[nn.Module],
        runs: Sequence[TrainingRun],
        recipe: Recipe,
        data: Dataset,
        observers: Sequence[Observer] = (),
        states: StateStores | None = None,
    ) -> list[NonFiniteError | None]:
        """One pack; of models that may read batches once, one for each order of batches and one for what has batches of its own."""

        def train(models: Sequence[nn.Module], runs: Sequence[TrainingRun], kind: type[Pack]) -> list[NonFiniteError | None]:
            kept = None if states is None else states(f"{kind.__name__}: {'; '.join(run.description for run in runs)}")
            paths, graphs = self._fast_paths, self.graphs
            return train_models(
                models, self._loss, recipe, data, runs, kind=kind, observers=observers, fast_paths=paths, states=kept, graphs=graphs
            )

        if not self.shares_batches:
            return train(models, runs=runs, kind=PACKS[self.pack_kind])
        errors: list[NonFiniteError | None] = [None] * len(runs)
        by_order: dict[Randomness | None, list[int]] = {}
        for index, run in enumerate(runs):
            by_order.setdefault(_shared_order(run), []).append(index)
        if len(by_order) > 1 and not self._is_narrow:
            # The bits are those of a stacked pack, and one pack costs less than several.
            return train(models, runs=runs, kind=StackedPack)
        for order, members in by_order.items():
            some, their = [models[index] for index in members], [runs[index] for index in members]
            kind = StackedPack if order is None else SharedPack
            for index, error in zip(members, train(some, runs=their, kind=kind), strict=True):
                errors[index] = error
                if error is not None and kind is SharedPack and runs[index].kept is not None and not observers:
                    # A row that the run does not keep may have spoiled it.
                    again = self.build(runs[index].randomness)
                    errors[index] = train([again], runs=[runs[index]], kind=StackedPack)[0]
                    models[index].load_state_dict(again.state_dict())
        return errors

    def pack_size(self, models: int | None = None) -> int:
        """How many models to train at once on this machine: measured once, in about a second; as many as fit, with narrow products.

        If only so few ``models`` are to come that measuring would take longer than it saves, a default.
        """
        if self._fixed_slots is not None:
            return self._fixed_slots
        if self._pack_size is None and self._is_narrow and self._device.type == "cpu":
            # Narrow products are faster the more models there are.
            self._pack_size = self._max_slots()
        if self._pack_size is None and models is not None and models * self._num_steps() < MIN_STEPS_TO_PROBE:
            return min(DEFAULT_SLOTS, self._max_slots())
        if self._pack_size is None:
            self._pack_size = self._probe()
        return self._pack_size

    def seconds_per_model(self, pack_size: int | None = None, *, own_batches: bool = False) -> float:
        """Seconds that one model takes here in packs of ``pack_size`` (default: :meth:`pack_size`), from a few steps.

        ``own_batches``: of models that do not share batches, because of fresh random numbers or new batches.
        """
        return self._seconds_per_step(pack_size or self.pack_size(), own_batches=own_batches) * self._num_steps()

    def _num_steps(self) -> int:
        """Steps of one training."""
        return self._recipe.epochs * self._recipe.steps_per_epoch(len(self._data.inputs))

    def _probe(self) -> int:
        # Of a CPU the processor's own seconds: other work on the machine would make the choice a matter of luck.
        clock = time.perf_counter if self._device.type == "cuda" else time.process_time
        best, size, seconds = 1, 1, self._seconds_per_step(1, clock=clock)
        largest = self._max_slots()
        while size * 2 <= largest:
            size *= 2
            took = self._seconds_per_step(size, clock=clock)
            if took > seconds * 1.15:
                break
            if took < seconds * LARGER_PACK_TIME:
                best, seconds = size, took
        return best

    def _max_slots(self) -> int:
        """How many models a pack may hold: what fits the caches of a CPU or the free memory of a GPU."""
        most = MAX_SLOTS.get(self._device.type, 1)
        if self._device.type != "cuda":
            size = sum(p.numel() * p.element_size() for p in self.build(Randomness(0)).parameters())
            return min(most, max_models_per_step(self.pack_kind, size))
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._seconds_per_step(2, own_batches=True)
        each = (torch.cuda.max_memory_allocated(self._device) - before) / 2
        free, _ = torch.cuda.mem_get_info(self._device)
        # A captured step has memory of its own, beside that of plain steps.
        share = GPU_MEMORY_SHARE if self.graphs is None else GPU_MEMORY_SHARE / 2
        return min(most, max(1, int(share * free / max(each, 1.0))))

    def _seconds_per_step(self, size: int, *, own_batches: bool = False, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds of a step of ``size`` models at once, divided by ``size``: the best of a few short runs on whole batches."""
        rows = min(len(self._data.inputs), PROBE_STEPS * self._recipe.batch_size)
        data = Dataset(self._data.inputs[:rows], self._data.targets[:rows], self._data.ids[:rows])
        short = replace(self._recipe, epochs=1)
        steps = short.steps_per_epoch(rows)
        slots = self._fixed_slots or size
        runs = [TrainingRun(Randomness(0, "own batches" if own_batches else ""))] * slots
        models = [self.build(Randomness(0)) for _ in range(slots)]
        best = float("inf")
        for _ in range(3):
            self._synchronize()
            began = clock()
            self._train_pack(models, runs, short, data)
            self._synchronize()
            best = min(best, (clock() - began) / (steps * size))
        return best

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _shared_order(run: TrainingRun) -> Randomness | None:
    """What the batches of a run follow from, if others may have the same; None where they follow from the rows that it keeps.

    It depends on the policy alone: a run with new batches or fresh random numbers is computed alike in any company.
    """
    own_batches = run.rebatch and run.kept is not None and not bool(run.kept.all())
    return None if own_batches or run.randomness.stream else run.randomness
