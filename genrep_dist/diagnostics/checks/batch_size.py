"""Outputs and features of the sampled rows do not depend on the batch: batches of 1, 7 and all rows agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, dtype_text, largest_relative
from genrep_dist.diagnostics.finding import Finding, compare, nan_as_inf

BEFORE_RETRAINING = True
_BATCH_SIZES = (1, 7)


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for the model_outputs, and one for the features of each feature kernel of the run."""
    yield _invariance(context, "outputs", model_outputs)
    for name, kernel in context.feature_kernels().items():
        output = context.outputs[0] if kernel.factored else None
        yield _invariance(context, f"features of kernel {name}", partial(_dense_features, context, kernel, output))


def _dense_features(context: CheckContext, kernel: FeatureKernel, output: int | None, model: nn.Module, inputs: Tensor) -> Tensor:
    features = kernel.features(model, inputs, context.output_index(inputs, output))
    return features.to_dense() if isinstance(features, FactoredGradients) else features


def _invariance(context: CheckContext, what: str, compute: Callable[[torch.nn.Module, Tensor], Tensor]) -> Finding:
    inputs = context.inputs
    sizes = sorted({*(size for size in _BATCH_SIZES if size < len(inputs)), len(inputs)})

    def results(size: int) -> Tensor:
        parts = (compute(context.model, inputs[i : i + size]).detach() for i in range(0, len(inputs), size))
        return torch.cat(list(parts)).flatten(1)  # (S, L)

    plain = results(sizes[0])
    reference = plain
    if what == "outputs":
        # Outputs may be near zero, where any rounding is relatively large: their scale is the largest output.
        largest = float(plain.abs().max())
        reference = torch.full_like(plain, largest if largest > 0 else 1.0)
    # The results of one size at a time are held beside those of single samples.
    found = [largest_relative(results(size).sub_(plain), reference) for size in sizes[1:]]
    number, sample = max(found, key=lambda pair: nan_as_inf(pair[0]), default=(0.0, 0))
    return compare(
        "batch size",
        number,
        ROUNDINGS * float(torch.finfo(reference.dtype).eps),
        f"{what}: largest relative difference between batches of {', '.join(map(str, sizes))}, at sample id {context.train_id(sample)}; "
        f"bound: {ROUNDINGS:,} roundings of {dtype_text(reference)}",
        "an output depends on the other samples of its batch, or is random: look for normalisation or statistics over dimension 0, "
        "and for random numbers in evaluation mode",
        seed=context.seed,
    )
