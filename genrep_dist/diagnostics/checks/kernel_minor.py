"""A kernel of the user's own is positive semi-definite on a few training rows. In a finished run `gram` checks the stored grams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from genrep_dist.core.kernels.base import PairwiseKernel, computed_pairs
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare

BEFORE_RETRAINING = True
MOST_ROWS = 64


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each pairwise kernel whose gram the run needs, at its last epoch."""
    if not context.before_retraining:
        return
    num_train = context.plan.shape.num_train
    rows = np.sort(context.generator("minor").choice(num_train, size=min(MOST_ROWS, num_train), replace=False)).tolist()
    inputs = context.in_dtype(context.worker.train.inputs[rows])
    for name, epoch in dict(context.plan.needs.grams).items():
        kernel = context.worker.kernel(name)
        if not isinstance(kernel, PairwiseKernel):
            continue
        with torch.no_grad():
            minor = computed_pairs(kernel, context.model_at(epoch), inputs, inputs).double().cpu().numpy()
        eigenvalues = np.linalg.eigvalsh((minor + minor.T) / 2)
        largest = float(np.abs(eigenvalues).max())
        yield compare(
            "kernel minor",
            float(eigenvalues[0]) / largest if largest > 0 else 0.0,
            -len(rows) * float(np.finfo(np.float32).eps),
            f"{name} at epoch {epoch}: smallest eigenvalue relative to the largest, of K on {len(rows)} training rows; bound: one float32 "
            "rounding of the largest per row",
            "K is not a Mercer kernel, so neither surrogate nor influence is defined on it: correct the kernel's class",
            seed=context.seed,
            at_least=True,
        )
