"""Stage importances: alpha by the projection of Eq. 5, and the importances that fall out of training."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from genrep_dist.plan import ImportanceUnit
from genrep_dist.representers.importance import target_importance
from genrep_dist.representers.surrogate import solve_surrogate
from genrep_dist.stages.gram import Gram
from genrep_dist.stages.job import Workbench, to_numpy


def run(unit: ImportanceUnit, bench: Workbench) -> dict[str, float]:
    """Solve the projection and write alpha (N, C) float64 with its certificate. ConvergenceError instead of a bad alpha."""
    gram = Gram(bench.store.artifact("gram", bench.keys.gram(unit.seed, unit.kernel, unit.epoch)), unit.memory_budget_bytes)
    asked = bench.experiment.surrogate
    # Whatever the kernel's checkpoint, the projected function is the final model: it is what is explained.
    outputs = train_outputs(bench, unit.seed, bench.keys.epochs).double().cpu()
    alpha, certificate = solve_surrogate(
        gram.matvec,
        bench.loss,
        outputs,
        lam=asked.lam,
        tolerance=asked.tolerance,
        max_iterations=asked.max_iterations,
        allow_unconverged=asked.allow_unconverged,
    )
    artifact = bench.store.artifact("surrogate", bench.keys.surrogate(unit.seed, unit.kernel, unit.epoch))
    artifact.write("alpha", to_numpy(alpha), ("train", "output"))
    artifact.commit({"seed": unit.seed, "certificate": asdict(certificate)})
    return {"matvecs": float(certificate.matvecs), "residual": certificate.residual}


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
    return torch.from_numpy(bench.store.artifact("surrogate", bench.keys.surrogate(seed, kernel, epoch)).read("alpha"))
