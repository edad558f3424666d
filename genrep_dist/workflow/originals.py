"""The training of an original model, by the recipe or by the problem's own function, and what the store keeps of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError
from genrep_dist.training.function_trainer import FunctionTrainer
from genrep_dist.training.loop import TrainingRun
from genrep_dist.training.observers import Checkpoint, Checkpoints, TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.training.user_run import Record
from genrep_dist.workflow.context import WorkerContext, declared_epochs
from genrep_dist.workflow.function_rehearsal import Provided, check_provided


@dataclass(frozen=True)
class Original:
    """A trained ``model``, its kept ``checkpoints`` in ascending order, the last one its own, and Eq. 10's sums ``alpha`` (N, C) float64.

    ``alpha`` is None where a training function does not report its steps. The state of a model that is no module is empty.
    """

    model: Any
    checkpoints: list[Checkpoint]
    alpha: Tensor | None


def train_original(context: WorkerContext, seed: int) -> Original:
    """Train the model of ``seed`` on all samples. Raises what its trainer raises, and ProblemError as :func:`check_provided` does."""
    trainer, randomness = context.trainer, Randomness(seed)
    tracking, epochs = TrackingImportance(), context.keys.saved_epochs()
    if isinstance(trainer, FunctionTrainer):
        return _by_function(context, trainer, TrainingRun(randomness, description=f"original model of seed {seed}"))
    checkpoints = Checkpoints(epochs, context.train, context.recipe, batch_size=context.job.prediction_rows)
    model = trainer.train(TrainingRun(randomness), observers=(tracking, checkpoints))
    return Original(model, checkpoints.saved, tracking.alpha)


def _by_function(context: WorkerContext, trainer: FunctionTrainer, run: TrainingRun) -> Original:
    keys, final = context.keys, context.keys.epochs
    record = Record(frozenset(keys.saved_epochs()), TrackingImportance())
    model = trainer.train(run, record)
    has_epochs = declared_epochs(context.problem, context.experiment, context.recipe) is not None
    provided = Provided(frozenset(record.seen), record.has_steps)
    check_provided(keys, provided, has_epochs=has_epochs, has_module=context.has_module)
    outputs, rate = context.predict(model, context.train.inputs), context.recipe.learning_rate
    if not context.has_module:
        return Original(model, [Checkpoint(final, rate, {}, outputs)], None)
    saved = []
    for epoch in sorted(record.states.keys() - {final}):
        earlier = context.fresh_model()
        earlier.load_state_dict(record.states[epoch])
        earlier_outputs = context.predict(earlier.to(context.device), context.train.inputs)
        saved.append(Checkpoint(epoch, record.rates.get(epoch, rate), record.states[epoch], earlier_outputs))
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    last_rate = rate if record.last_rate is None else record.last_rate
    saved.append(Checkpoint(final, record.rates.get(final, last_rate), state, outputs))
    alpha = record.tracking.alpha if record.has_steps and record.tracking is not None else None
    if alpha is not None and alpha.shape != outputs.shape:
        raise ProblemError(
            "the steps that the training function reports have another number of outputs than the model",
            where="train(), run.step",
            expected=f"outputs (B, {outputs.shape[1]})",
            got=f"(B, {alpha.shape[1]})",
            remedy="pass the outputs of the model itself",
        )
    return Original(model, saved, alpha)


def repeat_difference(context: WorkerContext, seed: int) -> tuple[float, float]:
    """Train the original model of ``seed`` again: the largest difference to its stored test outputs, and the largest of these outputs."""
    trainer = context.trainer
    kept = torch.zeros(len(context.train.ids), dtype=torch.bool)
    kept[: max(1, len(kept) // 8)] = True
    # On other rows first: what the function keeps from one call to the next, which a worker may not have called before, shows as well.
    trainer.train_all([TrainingRun(Randomness(seed), kept.to(context.device))])
    repeated = trainer.train_all([TrainingRun(Randomness(seed), description=f"original model of seed {seed}, again")])[0]
    if isinstance(repeated, Exception):
        raise repeated
    stored = torch.from_numpy(context.train_artifact(seed).read("outputs_test")).double()
    found = context.predict(repeated, context.test.inputs).cpu().double()
    return float((found - stored).abs().max()), float(stored.abs().max())
