"""Surrogate importances satisfy their equation: ||alpha + dL(K alpha)/(n lambda)|| / ||alpha|| is within the tolerance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from genrep_dist.core.importances.surrogate import SurrogateDerivative
from genrep_dist.diagnostics.context import CheckContext, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key, nan_as_inf
from genrep_dist.diagnostics.grams import gram_product
from genrep_dist.workflow.importances import gram_operator, importance_unit


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each gram: the certified residuals of all seeds, and the residual recomputed for the first seed."""
    for kernel, epoch in context.solved(SurrogateDerivative):
        artifacts = {seed: context.solved_artifact(SurrogateDerivative.name, seed, kernel, epoch) for seed in context.seeds}
        numbers = {seed: float(artifact.manifest()["certificate"]["residual"]) for seed, artifact in artifacts.items()}
        recomputed = _residual(context, kernel, epoch)
        numbers[context.seed] = max(numbers[context.seed], recomputed, key=nan_as_inf)
        seed, tolerance = largest_key(numbers), context.plan.experiment.surrogate.tolerance
        yield compare(
            "surrogate residual",
            numbers[seed],
            tolerance,
            f"{kernel} at epoch {epoch}: largest stationarity residual, as certified for {count_text(len(numbers), 'seed')} and "
            f"recomputed from stored alpha and gram for seed {context.seed} ({recomputed:.2g}); bound: surrogate.tolerance",
            "alpha is not the projection onto this gram: "
            + (
                "the solver did not converge, which surrogate.allow_unconverged accepts: raise surrogate.max_iterations"
                if float(artifacts[seed].manifest()["certificate"]["residual"]) > tolerance
                else f"alpha or the gram was changed after it was written: {rerun_text(context, artifacts[seed])}"
            ),
            seed=seed,
        )


def _residual(context: CheckContext, kernel: str, epoch: int) -> float:
    """The first seed's residual, from stored alpha (N, C) and gram, or features where there is no gram."""
    loss = context.worker.loss
    artifact = context.solved_artifact(SurrogateDerivative.name, context.seed, kernel, epoch)
    alpha: npt.NDArray[np.float64] = artifact.read("alpha")
    lam = float(artifact.manifest()["certificate"]["lam"])
    # The soft predictions are those of the final model, whatever the checkpoint of the kernel.
    targets = loss.soft_targets(torch.from_numpy(context.train_outputs(context.seed, context.plan.keys.epochs)))
    unit = importance_unit(context.plan, context.seed, SurrogateDerivative.name, kernel, epoch)
    if unit.features is None:
        fitted = torch.from_numpy(gram_product(context, context.seed, kernel, epoch, alpha))
    else:
        fitted = gram_operator(unit, context.worker).matvec(torch.from_numpy(alpha))
    gap = float(np.linalg.norm(alpha + loss.derivative(fitted, targets).numpy() / (len(alpha) * lam)))
    size = float(np.linalg.norm(alpha))
    return gap / size if size > 0 else gap
