"""Stage importances: alpha solved for on a gram (Eq. 5, Eq. 9), and the importances that fall out of training."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from genrep_dist.core.importances.target import target_importance
from genrep_dist.core.solvers.kernel_descent import kernel_descent
from genrep_dist.core.solvers.surrogate import solve_surrogate
from genrep_dist.training.randomness import Randomness
from genrep_dist.units import ImportanceUnit
from genrep_dist.workflow.context import Workbench, to_numpy
from genrep_dist.workflow.gram import Gram


def run(unit: ImportanceUnit, bench: Workbench) -> dict[str, float]:
    """Solve for alpha (N, C) float64 and write it with its certificate. ConvergenceError instead of a bad alpha."""
    # Whatever the kernel's checkpoint, the projected function is the final model: it is what is explained.
    outputs = train_outputs(bench, unit.seed, bench.keys.epochs).double().cpu()
    rows_per_sample = outputs.shape[1] if unit.kernel == "ntk" else 1
    artifact = bench.store.artifact("gram", bench.keys.gram(unit.seed, unit.kernel, unit.epoch))
    gram = Gram(artifact, unit.memory_budget_bytes, rows_per_sample)
    alpha, certificate = (_surrogate if unit.importance == "surrogate" else _descent)(unit, bench, gram, outputs)
    artifact = bench.store.artifact(unit.importance, bench.keys.solved(unit.importance, unit.seed, unit.kernel, unit.epoch))
    artifact.write("alpha", to_numpy(alpha), ("train", "output"))
    about = {"seed": unit.seed, "kernel": unit.kernel, "epoch": unit.epoch}
    artifact.commit({**about, "certificate": certificate, "seconds": bench.elapsed()})
    return {"efficiency_gap": float(certificate["efficiency_gap"])}


def _surrogate(unit: ImportanceUnit, bench: Workbench, gram: Gram, outputs: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """The projection of Eq. 5, converged."""
    del unit
    asked = bench.experiment.surrogate
    alpha, certificate = solve_surrogate(
        gram.matvec,
        bench.loss,
        outputs,
        lam=asked.lam,
        tolerance=asked.tolerance,
        max_iterations=asked.max_iterations,
        allow_unconverged=asked.allow_unconverged,
        columns=lambda rows: gram.sample(rows, outputs.shape[1]),
    )
    return alpha, asdict(certificate)


def _descent(unit: ImportanceUnit, bench: Workbench, gram: Gram, outputs: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Kernel gradient descent (Eq. 8-9), by default over the very batches and rates of the model's own run."""
    asked = bench.experiment.descent
    changes = {name: value for name in ("learning_rate", "epochs") if (value := getattr(asked, name)) is not None}
    recipe = replace(bench.recipe, **changes)
    num_rows = len(outputs)
    batch_size = recipe.batch_size if asked.batches == "recipe" else num_rows
    randomness = Randomness(unit.seed)
    orders = [randomness.order(epoch, num_rows) for epoch in range(1, recipe.epochs + 1)]
    batches = [batch for order in orders for batch in torch.split(order, batch_size)]
    rates = [recipe.rate(step, len(batches)) for step in range(len(batches))]
    alpha, _, certificate = kernel_descent(
        gram.matvec,
        bench.loss,
        outputs,
        rates=rates,
        batches=batches if asked.batches == "recipe" else None,
        batch_matvec=gram.columns if asked.batches == "recipe" else None,
    )
    return alpha, asdict(certificate)


def train_outputs(bench: Workbench, seed: int, epoch: int) -> Tensor:
    """Outputs (N, C) on the training set after ``epoch`` epochs."""
    artifact = bench.train_artifact(seed)
    row = artifact.read("epochs").tolist().index(epoch)
    return torch.from_numpy(artifact.read("outputs_train")[row])


def importance(bench: Workbench, name: str, seed: int, kernel: str, epoch: int) -> Tensor:
    """Alpha (N, C) float64 of 'target' (at the given epoch), 'tracking' or 'surrogate' (of the given kernel)."""
    if name == "tracking":
        return torch.from_numpy(bench.train_artifact(seed).read("tracking"))
    if name == "target":
        return target_importance(bench.loss, train_outputs(bench, seed, epoch), bench.train.targets.cpu()).double()
    return torch.from_numpy(bench.store.artifact(name, bench.keys.solved(name, seed, kernel, epoch)).read("alpha"))
