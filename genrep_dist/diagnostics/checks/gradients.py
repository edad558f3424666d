"""Batched per-sample gradients of the final model against one backward pass per sample and output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_relative, trainable
from genrep_dist.diagnostics.finding import Finding, compare, nan_as_inf

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    """One finding if the run uses gradients of the parameters."""
    if not context.uses_gradients:
        return
    number, sample = max((_difference(context, output) for output in context.outputs), key=lambda found: nan_as_inf(found[0]))
    yield compare(
        "gradients",
        number,
        context.rounding,
        f"largest relative difference between batched per-sample gradients and single backward passes over {len(context.rows)} samples, at "
        f"sample id {context.train_id(sample)}{context.outputs_text}; bound: {ROUNDINGS:,} roundings of "
        f"{dtype_text(trainable(context.model)[0])}",
        "on a GPU set torch.backends.cudnn.allow_tf32 = False; else a layer computes something different in a batch: find it by removing "
        "layers",
        seed=context.seed,
    )


def _difference(context: CheckContext, output: int | None) -> tuple[float, int]:
    """The largest relative difference, and its sample."""
    slow = torch.stack([one_by_one(context.model, sample, output) for sample in context.inputs])
    return largest_relative(context.gradients(context.model, context.inputs, output).sub_(slow), slow)
