"""The final checkpoint, loaded again, gives the stored test outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_sample, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare

BEFORE_RETRAINING = True
FIRST_SEED_ROWS = 64
"""Test rows that are predicted before the retrainings; all of them in a finished run."""


def check(context: CheckContext) -> Iterator[Finding]:
    artifact = context.train_artifact(context.seed)
    stored = _stored(context)
    found = _found(context)
    gap, sample = largest_sample((found.double() - stored).abs())
    scale = float(stored.abs().max())
    yield compare(
        "reproduction",
        gap / scale if scale > 0 else gap,
        context.rounding,
        "largest difference between the loaded model's test outputs and the stored ones, relative to the largest output, "
        f"at test sample id {int(context.worker.test.ids[sample])}; bound: {ROUNDINGS:,} roundings of {dtype_text(found)}",
        "if code that the model calls has changed since the run (another file of yours, a library, the device), restore it, or run in a "
        "new store; if the model draws random numbers in evaluation mode, correct it. Else the checkpoint or the outputs were changed: "
        f"{rerun_text(context, artifact)}",
        seed=context.seed,
    )


def recomputed(context: CheckContext) -> Iterator[Tensor]:
    yield _found(context).double() / (float(_stored(context).abs().max()) or 1.0)


def _rows(context: CheckContext) -> slice:
    return slice(FIRST_SEED_ROWS if context.before_retraining else None)


def _stored(context: CheckContext) -> Tensor:
    return torch.from_numpy(context.train_artifact(context.seed).read("outputs_test"))[_rows(context)].double()


def _found(context: CheckContext) -> Tensor:
    return context.worker.predict(context.model, context.in_dtype(context.worker.test.inputs[_rows(context)])).cpu()
