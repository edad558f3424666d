"""Batched per-sample gradients of the final model against one backward pass per sample and output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.gradients.reference import one_by_one
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_relative
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.errors import ProblemError


def check(context: CheckContext) -> Iterator[Finding]:
    """One finding; none for a run without kernels of gradients whose model has no defined gradients."""
    try:
        fast = per_sample_gradients(context.model, context.inputs)
    except ProblemError:
        if context.plan.needs.derived or any(kernel.factored for kernel in context.feature_kernels().values()):
            raise
        return
    slow = torch.stack([one_by_one(context.model, sample) for sample in context.inputs])
    number, sample = largest_relative(fast - slow, slow)
    yield compare(
        "gradients",
        number,
        context.rounding,
        f"largest relative difference between batched per-sample gradients and single backward passes over {len(context.rows)} samples, at "
        f"sample id {context.train_id(sample)}; bound: {ROUNDINGS:,} roundings of {dtype_text(fast)}",
        "on a GPU set torch.backends.cudnn.allow_tf32 = False; else a layer computes something different in a batch: find it by removing "
        "layers",
        seed=context.seed,
    )
