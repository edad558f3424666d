"""Stage train: one seed's model, from recipe and seed to checkpoints, tracked importances and outputs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from genrep_dist.errors import NonFiniteError
from genrep_dist.plan import Plan, StagePlan
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.units import Unit
from genrep_dist.workflow.base import ArtifactSpec, Rates, SampleAxis, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from genrep_dist.workflow.context import WorkerContext

STATE_COPIES = 2
"""Copies of a whole model beside those of its trained parameters: the model, and the initial one."""
PARAMETER_COPIES = 6
"""Further copies of the trained parameters that training holds: packed, gradients, optimizer state, and what an update computes."""
TRIAL_MODELS = 3
ORDER_BYTES = 48
"""Bytes that each model's order of an epoch takes for each training row: as drawn, without the removed rows, cut into steps."""
CHECKPOINT_COPIES = 3
"""Copies of all checkpoints: as they were saved, as one array, and what writing it takes."""


@dataclass(frozen=True)
class TrainUnit(Unit):
    """Train one seed's model; writes its checkpoints, tracked importances and outputs."""

    stage: ClassVar[str] = "train"


@dataclass(frozen=True)
class RepeatUnit(TrainUnit):
    """Train the model of a seed, which is in the store, once more, and compare. Writes nothing."""

    @property
    def label(self) -> str:
        return f"train seed={self.seed} again"

    @property
    def size(self) -> int:
        return 2  # trainings


class TrainStage(Stage[TrainUnit]):
    name = "train"

    def artifacts(self, plan: Plan) -> Iterator[ArtifactSpec]:
        # Those that are explained come first: a run looks at the first of them before it does more.
        seeds = [*plan.experiment.seeds, *plan.keys.unreported_seeds()]
        return (ArtifactSpec("train", plan.keys.train(seed), seed, (TrainUnit(seed),)) for seed in seeds)

    def run(self, unit: TrainUnit, context: WorkerContext) -> dict[str, float]:
        """Train, write the artifact, enter the model into the ledger as the one with nothing removed, commit. Returns statistics."""
        import torch

        from genrep_dist.workflow.checkpoints import pack_states, state_dtypes
        from genrep_dist.workflow.context import to_numpy
        from genrep_dist.workflow.originals import repeat_difference, train_original

        if isinstance(unit, RepeatUnit):
            difference, scale = repeat_difference(context, unit.seed)
            return {"difference": difference, "scale": scale}
        trainer = context.trainer
        began = time.perf_counter()
        trained = train_original(context, unit.seed)
        seconds = time.perf_counter() - began
        outputs_test = context.predict(trained.model, context.test.inputs)
        check_outputs(outputs_test, context.test.ids, f"test outputs, seed {unit.seed}")

        artifact = context.train_artifact(unit.seed)
        pack_states(artifact, trained.checkpoints)
        outputs = torch.stack([checkpoint.outputs for checkpoint in trained.checkpoints])
        artifact.write("outputs_train", to_numpy(outputs), ("checkpoint", "train", "output"))
        artifact.write("outputs_test", to_numpy(outputs_test), ("test", "output"))
        if trained.alpha is not None:
            artifact.write("tracking", to_numpy(trained.alpha), ("train", "output"))
        row = LedgerRow(
            key=context.keys.retraining(unit.seed, (), "same"),
            seed=unit.seed,
            policy="same",
            replicate=0,
            removed=(),
            outputs=to_numpy(outputs_test.double()),
            seconds=seconds,
        )
        context.store.ledger(context.keys.training).write([row])
        loss = context.loss.value(trained.checkpoints[-1].outputs, context.train.targets).mean()
        accuracy = test_accuracy(context.loss.name, outputs_test, context.test.targets)
        artifact.commit(
            {
                "seed": unit.seed,
                "state_dtypes": state_dtypes(trained.checkpoints[0].state),
                "absent": [] if trained.alpha is not None else ["tracking"],
                "train_loss": float(loss),
                "seconds": seconds,
                "test_accuracy": accuracy,
                "torch": torch.__version__,
                "device": context.device.type,
                "pack_kind": trainer.pack_kind,
                "solo_reason": trainer.solo_reason,
                "shares_batches": trainer.shares_batches,
                **({} if trainer.graphs is None else {"cuda_graphs": trainer.graphs.summary}),
            }
        )
        return {"seconds": seconds, "models": 1.0}

    def sample_axes(self, kind: str) -> dict[str, SampleAxis]:
        del kind
        return {"tracking": ("train", 0), "outputs_train": ("train", 1), "outputs_test": ("test", 0)}

    def plan(self, plan: Plan) -> StagePlan | None:
        shape, others, saved = plan.shape, len(plan.keys.unreported_seeds()), len(plan.keys.saved_epochs())
        seeds = len(plan.experiment.seeds) + others
        values = shape.num_train * shape.num_outputs
        checkpoints = saved * (shape.checkpoint_bytes + shape.item_bytes * values)
        per_model = checkpoints + shape.item_bytes * shape.num_test * shape.num_outputs + 8 * values
        peak = model_bytes(plan) + CHECKPOINT_COPIES * checkpoints + output_bytes(plan) + 8 * values
        what = f"{seeds} models, {saved} checkpoints each" + (f"; {others} of them for ensembles alone" if others else "")
        return StagePlan(self.name, what, seeds, seeds * per_model, peak)

    def seconds(self, plan: Plan, rates: Rates) -> float:
        return (len(plan.experiment.seeds) + len(plan.keys.unreported_seeds())) * rates.train_seconds


def model_bytes(plan: Plan, models: int = 1) -> int:
    """Memory of training ``models`` together: parameters, gradients and optimizer state, with room to spare, and what a step takes beside
    them, or the predictions of one after the other that follow.
    """
    shape = plan.shape
    # One tensor of state is among PARAMETER_COPIES. Each further one comes with one that an update computes from it.
    copies = PARAMETER_COPIES + 2 * max(0, shape.optimizer_copies - 1)
    held = STATE_COPIES * shape.checkpoint_bytes + copies * shape.parameter_bytes + ORDER_BYTES * shape.num_train
    # A process that trains in packs first tries one of three models.
    shared = max(models, TRIAL_MODELS) if shape.pack_kind != "solo" else models
    return models * held + max(shared * shape.step_bytes, plan.prediction_bytes)


def output_bytes(plan: Plan) -> int:
    """Memory of one model's outputs (T, C) on all test samples: its own, float64, and as they are written."""
    return (shape := plan.shape).num_test * shape.num_outputs * (shape.item_bytes + 3 * 8)


def test_accuracy(loss_name: str, outputs: Tensor, targets: Tensor) -> float | None:
    """Share of test samples classified rightly; None for a loss that is not a classification's."""
    if loss_name == "logistic":
        return float(((outputs.reshape(-1) > 0) == (targets.reshape(-1) > 0.5)).double().mean())
    if loss_name == "softmax":
        classes = targets if targets.dim() == 1 else targets.argmax(dim=1)
        return float((outputs.argmax(dim=1) == classes).double().mean())
    return None


def check_outputs(outputs: Tensor, ids: Tensor, where: str) -> None:
    """Raise NonFiniteError with the ids of samples whose output is NaN or Inf."""
    import torch

    fine = torch.isfinite(outputs).all(dim=1).cpu().numpy()
    if not fine.all():
        bad = np.asarray(ids.cpu())[~fine]
        raise NonFiniteError(
            "NaN or Inf in a model's outputs",
            where=f"{where}; sample ids {bad[:5].tolist()}",
            expected="finite logits",
            got=f"{len(bad)} bad samples",
            remedy="lower recipe.learning_rate, or look at these samples",
        )
