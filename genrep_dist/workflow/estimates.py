"""How long a plan will take, from a probe of some seconds on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import GenRepError
from genrep_dist.plan import GPU_FLOP_PER_SECOND, Plan
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.threads import one_thread
from genrep_dist.training.trainer import Trainer
from genrep_dist.units import StageName
from genrep_dist.workflow.context import pick_device
from genrep_dist.workflow.prepare import Prepared
from genrep_dist.workflow.trial_run import rehearse

PROBE_SECONDS = 0.5
REHEARSAL_SECONDS = 3.0
START_SECONDS = 4.0
"""Importing everything, reading and checking the problem, laying out the plan."""
CLUSTER_SECONDS = 5.0
"""Starting Ray on one machine, and ending it."""
WORKER_SECONDS = 4.0
"""Until the workers of a pool have imported what they need and opened the data; they start side by side."""
JUDGE_SECONDS = 6.0
"""Judging, tables, figures, report, and MLflow's parent run."""
METHOD_SECONDS = 0.2
"""What each method adds to that."""
ACTOR_STAGES: frozenset[StageName] = frozenset({"gradients", "kernels"})
UNIT_OVERHEAD_SECONDS = 0.02


@dataclass(frozen=True)
class Forecast:
    """Seconds of a run's ``stages``, and ``around`` them: starting, judging, publishing."""

    stages: dict[StageName, float]
    around: float

    @property
    def total(self) -> float:
        return sum(self.stages.values()) + self.around


@dataclass(frozen=True)
class Rates:
    """Measured on one worker: seconds to train an original model, and a retrained one among those that share its steps; training rows a
    second through gradients; multiply-adds a second.
    """

    train_seconds: float
    retrain_seconds: float
    gradient_rows_per_second: float
    multiply_adds_per_second: float


def probe(prepared: Prepared) -> Rates:
    """Measure the rates with one thread, as a worker has it."""
    with one_thread():
        device = pick_device(prepared.plan.experiment.resources.device)
        trainer = _trainer(prepared, device)
        return Rates(trainer.seconds_per_model(1), trainer.seconds_per_model(), _gradients(prepared, device), _products(device))


def estimate(plan: Plan, rates: Rates, slots: int, missing: Mapping[StageName, float]) -> dict[StageName, float]:
    """Seconds for each stage; ``missing`` is the share of it that is still to do."""
    shape, seeds = plan.shape, len(plan.experiment.seeds)
    n, seconds = shape.num_train, {stage.name: 0.0 for stage in plan.stages}
    stored = plan.features_stored()
    for kernel, epoch in sorted({*plan.kernels_needed(), *plan.grams_needed()}):
        # The NTK costs gradients; the last layer a forward pass, which is a small part of one.
        cost = seeds * n * (1.0 if kernel == "ntk" else 0.2) / rates.gradient_rows_per_second
        if (kernel, epoch) in stored:
            seconds["gradients"] += cost
        else:
            seconds["kernels"] += plan.feature_passes(kernel, epoch) * cost
    for kernel, _ in plan.grams_needed():
        seconds["kernels"] += seeds * n * n / 2 * shape.products(kernel) / rates.multiply_adds_per_second
    for importance, kernel, _ in plan.solved_needed():
        products = 60 if importance == "surrogate" else (plan.experiment.descent.epochs or plan.keys.epochs)
        seconds["importances"] += seeds * products * shape.gram_rows(kernel) ** 2 / rates.multiply_adds_per_second
    if plan.influence_epochs():
        seconds["influence"] = seeds * _influence_cost(plan, rates)
    seconds["train"] = seeds * rates.train_seconds
    seconds["retrain"] = plan.retrainings_at_most * rates.retrain_seconds
    for stage in plan.stages:
        units = stage.units if stage.name != "retrain" else 0
        seconds[stage.name] = missing.get(stage.name, 1.0) * (seconds[stage.name] + units * UNIT_OVERHEAD_SECONDS) / slots
    return seconds


def forecast(prepared: Prepared, slots: int, missing: Mapping[StageName, float], models: int) -> Forecast:
    """Seconds of each stage of a run, and around them; ``models`` are trained anew at most, ``missing`` is the share of units to do.

    Where one seed takes no longer than REHEARSAL_SECONDS by :func:`estimate`, it is done for real (:func:`rehearse`): small units cost
    more than their arithmetic, and only the data know how many removal sets coincide. Larger experiments are told by their arithmetic.
    """
    plan, rates = prepared.plan, probe(prepared)
    seeds = len(plan.experiment.seeds)
    seconds = estimate(plan, rates, slots, missing)
    before = [name for name in seconds if name != "retrain"]
    whole = estimate(plan, rates, 1, {})
    if sum(whole[name] for name in before) <= REHEARSAL_SECONDS * seeds and any(missing.get(name, 1.0) for name in seconds):
        # What cannot be done cannot be timed: the run will say why, and its arithmetic stays as it is.
        with suppress(GenRepError):
            rehearsed = rehearse(prepared)
            for name in before:
                at_once = min(slots, seeds) if name == "train" else slots
                seconds[name] = missing.get(name, 1.0) * seeds * rehearsed.seconds[name] / at_once
            if models == plan.retrainings_at_most:
                seconds["retrain"] *= rehearsed.distinct
    works = any(missing.get(name, 1.0) > 0 and seconds[name] > 0 for name in seconds)
    pools = sum(any(seconds.get(name, 0.0) > 0 for name in names) for names in (ACTOR_STAGES, set(seconds) - ACTOR_STAGES))
    around = START_SECONDS + (CLUSTER_SECONDS + pools * WORKER_SECONDS if works else 0.0)
    around += JUDGE_SECONDS + METHOD_SECONDS * len(plan.experiment.methods)
    return Forecast(seconds, around)


def gpu_hours(plan: Plan, epochs: int) -> float:
    """GPU-hours of all the plan's training for ``epochs`` each: a guess from the arithmetic, for a machine without a GPU."""
    models = len(plan.experiment.seeds) + plan.retrainings_at_most
    # The way back takes twice what the way there takes.
    return models * epochs * plan.shape.num_train * 3 * plan.shape.forward_flop / GPU_FLOP_PER_SECOND / 3600


def _influence_cost(plan: Plan, rates: Rates) -> float:
    """Seconds a seed: one Cholesky factorisation in float64, or some fifty Hessian-vector products for each test point."""
    shape = plan.shape
    if plan.experiment.influence.base_kernel is not None:
        return 2 * (shape.num_train * shape.num_outputs) ** 3 / 3 / rates.multiply_adds_per_second
    return 50 * plan.experiment.num_test_points * 3 * shape.num_train / rates.gradient_rows_per_second


def _trainer(prepared: Prepared, device: torch.device) -> Trainer:
    """What trains on a worker: its short runs are a few steps of the training that is to come."""
    data = Dataset(prepared.train.inputs.to(device), prepared.train.targets.to(device), prepared.train.ids)
    return Trainer(prepared.problem.model, get_loss(prepared.problem.loss), prepared.recipe, data)


def _gradients(prepared: Prepared, device: torch.device) -> float:
    rows = min(prepared.plan.block_rows.get("ntk", 32), 64, len(prepared.train.ids))
    model = Randomness(0).build(prepared.problem.model).to(device).eval()
    inputs = prepared.train.inputs[:rows].to(device)
    return rows / _seconds(lambda: factored_gradients(model, inputs))


def _products(device: torch.device) -> float:
    matrix = torch.ones(512, 512, device=device)
    return 512**3 / _seconds(lambda: matrix @ matrix)


def _seconds(work: Callable[[], object]) -> float:
    """Shortest time of a few runs after a warm-up; other work on the machine can only lengthen it."""
    work()
    best, spent, runs = float("inf"), 0.0, 0
    while spent < PROBE_SECONDS and runs < 50:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best
