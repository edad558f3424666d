"""Outputs and features of the sampled rows do not depend on the batch: batches of 1, 7 and all rows agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from genrep_dist.core.gradients.dense import last_layer_features, outputs, per_sample_gradients
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_relative
from genrep_dist.diagnostics.finding import Finding, compare, nan_as_inf

_BATCH_SIZES = (1, 7)
_FEATURES: dict[str, tuple[str, Callable[[torch.nn.Module, Tensor], Tensor]]] = {
    "ntk": ("gradients", per_sample_gradients),
    "last-layer": ("last-layer features", last_layer_features),
}
"""By kernel: the name of its features, and how they are computed from (model, inputs (B, ...))."""


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for the outputs, and one for the features of each kernel of the run."""
    yield _invariance(context, "outputs", outputs)
    for kernel, (what, compute) in _FEATURES.items():
        if context.uses_kernel(kernel):
            yield _invariance(context, what, compute)


def _invariance(context: CheckContext, what: str, compute: Callable[[torch.nn.Module, Tensor], Tensor]) -> Finding:
    inputs = context.inputs
    sizes = sorted({*(size for size in _BATCH_SIZES if size < len(inputs)), len(inputs)})
    results = [
        torch.cat([compute(context.model, inputs[i : i + size]).detach() for i in range(0, len(inputs), size)]).flatten(1)  # (S, L)
        for size in sizes
    ]
    reference = results[0]
    if what == "outputs":
        # Outputs may be near zero, where any rounding is relatively large: their scale is the largest output.
        largest = float(reference.abs().max())
        reference = torch.full_like(reference, largest if largest > 0 else 1.0)
    number, sample = max(
        (largest_relative(result - results[0], reference) for result in results[1:]), key=lambda pair: nan_as_inf(pair[0]), default=(0.0, 0)
    )
    return compare(
        "batch size",
        number,
        context.rounding,
        f"{what}: largest relative difference between batches of {', '.join(map(str, sizes))}, at sample id {context.train_id(sample)}; "
        f"bound: {ROUNDINGS:,} roundings of {dtype_text(reference)}",
        "an output depends on the other samples of its batch, or is random: look for normalisation or statistics over dimension 0, "
        "and for random numbers in evaluation mode",
        seed=context.seed,
    )
