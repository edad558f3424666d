"""Batched per-sample gradients of the final model against one backward pass per sample and output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_relative
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.diagnostics.rounding import amber_if_rounding

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    """One finding if the run uses gradients of the parameters."""
    if not context.uses_gradients:
        return
    number, sample = _difference(context.model, context.inputs)
    found = compare(
        "gradients",
        number,
        context.rounding,
        f"largest relative difference between batched per-sample gradients and single backward passes over {len(context.rows)} samples, at "
        f"sample id {context.train_id(sample)}; bound: {ROUNDINGS:,} roundings of {dtype_text(next(context.model.parameters()))}",
        "on a GPU set torch.backends.cudnn.allow_tf32 = False; else a layer computes something different in a batch: find it by removing "
        "layers",
        seed=context.seed,
    )
    yield amber_if_rounding(found, context, lambda model, inputs: _difference(model, inputs)[0])


def _difference(model: nn.Module, inputs: Tensor) -> tuple[float, int]:
    """The largest difference from single backward passes, relative to their size, and its sample."""
    slow = torch.stack([one_by_one(model, sample) for sample in inputs])
    return largest_relative(per_sample_gradients(model, inputs) - slow, slow)
