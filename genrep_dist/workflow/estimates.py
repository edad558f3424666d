"""How long a plan will take, estimated from measurements of some seconds on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch

from genrep_dist.config.metrics import measured_metrics, retrain_policy
from genrep_dist.core.gradients.per_sample import factored_gradients
from genrep_dist.core.policies import RetrainPolicy
from genrep_dist.errors import GenRepError
from genrep_dist.plan import Plan, derived_kernel
from genrep_dist.problems.protocol import Dataset
from genrep_dist.training.function_trainer import FunctionTrainer
from genrep_dist.training.loop import predict
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.threads import one_thread
from genrep_dist.training.trainer import Trainer
from genrep_dist.units import StageName
from genrep_dist.workflow.base import Rates
from genrep_dist.workflow.context import make_trainer, pick_device
from genrep_dist.workflow.gradients import GPU_FLOP_PER_SECOND
from genrep_dist.workflow.prepare import PreparedExperiment
from genrep_dist.workflow.retrain import RetrainStage
from genrep_dist.workflow.stages import STAGES
from genrep_dist.workflow.train import TrainStage
from genrep_dist.workflow.trial_run import trial_run

MEASURED_SECONDS = 0.5
TRIAL_SECONDS = 3.0
FUNCTION_SECONDS = 20.0
"""A short run of a problem's own training function is given up after this time."""
START_SECONDS = 4.0
"""Importing libraries, reading and checking the problem, making the plan."""
CLUSTER_SECONDS = 5.0
"""Starting and stopping Ray on one machine."""
WORKER_SECONDS = 4.0
"""Until the workers have imported libraries and opened the data; they start at the same time."""
EVALUATION_SECONDS = 6.0
"""Metrics, tables, figures, report, and MLflow's parent run."""
METHOD_SECONDS = 0.2
"""What each method adds to that."""
UNIT_OVERHEAD_SECONDS = 0.02
FORWARD_SHARE = 0.2
"""Cost of a forward pass in units of gradients."""


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a run's ``stages``, and its ``overhead_seconds``: starting, evaluation, publication."""

    stages: dict[StageName, float]
    overhead_seconds: float

    @property
    def total(self) -> float:
        return sum(self.stages.values()) + self.overhead_seconds


def measure_rates(prepared: PreparedExperiment) -> Rates:
    """Measure the rates with one thread, as workers run."""
    with one_thread():
        device = pick_device(prepared.plan.experiment.resources.device)
        trainer, experiment = _trainer(prepared, device), prepared.plan.experiment
        policies = {retrain_policy(metric, experiment) for metric in measured_metrics(experiment)}
        retraining = trainer.seconds_per_model(own_batches=bool(policies - {"same"}))
        return Rates(trainer.seconds_per_model(1), retraining, _gradients(prepared, device), _products(device))


def seconds_in_packs(prepared: PreparedExperiment, policy: RetrainPolicy) -> float:
    """Seconds of one retraining of ``policy`` in packs of the best size here. It takes a few seconds."""
    with one_thread():
        trainer = _trainer(prepared, pick_device(prepared.plan.experiment.resources.device))
        return trainer.seconds_per_model(own_batches=policy != "same")


def estimate_stages(plan: Plan, rates: Rates, slots: int, missing: Mapping[StageName, float]) -> dict[StageName, float]:
    """Seconds of each stage on ``slots`` workers; ``missing`` is the share of its units that is still to do."""
    seconds = {}
    for line in plan.stages:
        # The measured seconds of a retraining contain its overhead.
        overhead = 0.0 if line.name == RetrainStage.name else line.units * UNIT_OVERHEAD_SECONDS
        seconds[line.name] = missing.get(line.name, 1.0) * (STAGES.get(line.name).seconds(plan, rates) + overhead) / slots
    return seconds


def estimate_run(
    prepared: PreparedExperiment, rates: Rates, slots: int, missing: Mapping[StageName, float], models: int, *, in_process: bool = False
) -> TimeEstimate:
    """Seconds of a run on ``slots`` workers of Ray, or ``in_process``.

    ``models`` are retrained at most, ``missing`` is the share of units to do.

    If :func:`estimate_stages` predicts at most TRIAL_SECONDS for one seed, that seed is run (:func:`trial_run`): small units cost more
    than their arithmetic, and only a run shows how many removal sets coincide. Larger experiments are estimated from their arithmetic.
    """
    plan = prepared.plan
    seeds = len(plan.experiment.seeds)
    seconds = estimate_stages(plan, rates, slots, missing)
    before = [name for name in seconds if name != RetrainStage.name]
    whole = estimate_stages(plan, rates, 1, {})
    if sum(whole[name] for name in before) <= TRIAL_SECONDS * seeds and any(missing.get(name, 1.0) for name in seconds):
        # If the trial fails, the run will raise the same error; the estimate from arithmetic stays.
        with suppress(GenRepError):
            trial = trial_run(prepared)
            for name in before:
                at_once = min(slots, seeds) if name == TrainStage.name else slots
                seconds[name] = missing.get(name, 1.0) * seeds * trial.seconds[name] / at_once
            if models == plan.retrainings_at_most:
                seconds[RetrainStage.name] *= trial.distinct
    works = any(missing.get(name, 1.0) > 0 and seconds[name] > 0 for name in seconds)
    overhead = START_SECONDS + (CLUSTER_SECONDS + WORKER_SECONDS if works and not in_process else 0.0)
    overhead += EVALUATION_SECONDS + METHOD_SECONDS * len(plan.experiment.methods)
    return TimeEstimate(seconds, overhead)


def gpu_hours(plan: Plan, epochs: int) -> float:
    """GPU-hours of all the plan's training for ``epochs`` each, guessed from the arithmetic, for a machine without a GPU."""
    models = len(plan.experiment.seeds) + len(plan.keys.unreported_seeds()) + plan.retrainings_at_most
    # A backward pass takes twice the operations of a forward pass.
    return models * epochs * plan.shape.num_train * 3 * plan.shape.forward_flop / GPU_FLOP_PER_SECOND / 3600


def _trainer(prepared: PreparedExperiment, device: torch.device) -> Trainer | FunctionTrainer:
    """A trainer as workers have it; its short runs are a few steps of the real training."""
    data = Dataset(prepared.train.inputs.to(device), prepared.train.targets.to(device), prepared.train.ids)
    return make_trainer(prepared.problem, prepared.plan.experiment, prepared.recipe, data, FUNCTION_SECONDS)


def _gradients(prepared: PreparedExperiment, device: torch.device) -> float:
    plan = prepared.plan
    if not plan.shape.has_module:
        return 1.0  # no method has gradients
    rows = min(*(plan.block_rows.values() or (32,)), 64, plan.gradient_rows, len(prepared.train.ids))
    model = Randomness(0).build(prepared.problem.model).to(device).eval()
    inputs = prepared.train.inputs[:rows].to(device)
    derived = [derived_kernel(plan.keys, name, plan.shape) for name, _ in plan.needs.derived]
    # Those of bases whose gram is not read are not in ``needs.features``.
    features = {*(kernel for kernel, _ in plan.needs.features), *(kernel.base for kernel in derived if kernel is not None)}
    factored = any(name is None or plan.shape.kernels[name].factored for name in features)
    if not factored:
        # No gradients are computed, and they need not be defined.
        return FORWARD_SHARE * rows / _seconds(lambda: predict(model, inputs))
    return rows / _seconds(lambda: factored_gradients(model, inputs))


def _products(device: torch.device) -> float:
    matrix = torch.ones(512, 512, device=device)
    return 512**3 / _seconds(lambda: matrix @ matrix)


def _seconds(work: Callable[[], object]) -> float:
    """Shortest time of a few runs after a warm-up, since other work on the machine can only lengthen it."""
    work()
    best, spent, runs = float("inf"), 0.0, 0
    while spent < MEASURED_SECONDS and runs < 50:
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best
