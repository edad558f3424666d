"""Stage train: one seed's model, from recipe and seed to checkpoints, tracked importances and outputs."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from genrep_dist.errors import NonFiniteError
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.training.loop import TrainingRun, predict
from genrep_dist.training.observers import Checkpoints, TrackingImportance
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import TrainUnit
from genrep_dist.workflow.checkpoints import pack_states
from genrep_dist.workflow.context import Workbench, to_numpy


def run(unit: TrainUnit, bench: Workbench) -> dict[str, float]:
    """Train, write the artifact, enter the model into the ledger as the one with nothing removed, commit. Returns statistics."""
    randomness = Randomness(unit.seed)
    tracking = TrackingImportance()
    checkpoints = Checkpoints(bench.keys.saved_epochs(), bench.train, bench.recipe)
    trainer = bench.trainer
    began = time.perf_counter()
    model = trainer.train(TrainingRun(randomness), observers=(tracking, checkpoints))
    seconds = time.perf_counter() - began
    outputs_test = predict(model, bench.test.inputs)
    check_outputs(outputs_test, bench.test.ids, f"test outputs, seed {unit.seed}")
    assert tracking.alpha is not None

    artifact = bench.train_artifact(unit.seed)
    pack_states(artifact, checkpoints.saved)
    outputs = torch.stack([checkpoint.outputs for checkpoint in checkpoints.saved])
    artifact.write("outputs_train", to_numpy(outputs), ("checkpoint", "train", "output"))
    artifact.write("outputs_test", to_numpy(outputs_test), ("test", "output"))
    artifact.write("tracking", to_numpy(tracking.alpha), ("train", "output"))
    row = LedgerRow(
        key=bench.keys.retraining(unit.seed, (), "same"),
        seed=unit.seed,
        policy="same",
        replicate=0,
        removed=(),
        outputs=to_numpy(outputs_test.double()),
        seconds=seconds,
    )
    bench.store.ledger(bench.keys.training).write([row])
    loss = bench.loss.value(checkpoints.saved[-1].outputs, bench.train.targets).mean()
    accuracy = test_accuracy(bench.loss.name, outputs_test, bench.test.targets)
    artifact.commit(
        {
            "seed": unit.seed,
            "state_dtypes": sorted({str(v.dtype).removeprefix("torch.") for v in checkpoints.saved[0].state.values()}),
            "train_loss": float(loss),
            "seconds": seconds,
            "test_accuracy": accuracy,
            "torch": torch.__version__,
            "device": bench.device.type,
            "pack_kind": trainer.pack_kind,
            "solo_reason": trainer.solo_reason,
        }
    )
    return {"seconds": seconds, "models": 1.0}


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
