"""K of the sampled rows and a few test points, computed now as the run computes it, against the kernel's slow reference.

For a run at its beginning. In a finished run the check `kernel` compares what was stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from genrep_dist.core.kernels.base import FeatureKernel, PairwiseKernel, computed_pairs
from genrep_dist.core.kernels.blocks import per_output
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, largest_sample
from genrep_dist.diagnostics.finding import Finding, compare
from genrep_dist.workflow.features import point_block, point_reference, prepare_points

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each feature kernel and each pairwise kernel, at its last epoch."""
    if context.before_retraining:
        # The pairs are sorted: the last epoch of a kernel comes last.
        yield from (_finding(context, name, epoch) for name, epoch in dict(context.plan.needs.features).items())


def _finding(context: CheckContext, name: str, epoch: int) -> Finding:
    kernel = context.worker.kernel(name)
    is_feature = isinstance(kernel, FeatureKernel)
    against = "its slow reference, in units of |g_i| |g_j|" if is_feature else "K of single samples with its arguments exchanged"
    tolerance = kernel.tolerance() if isinstance(kernel, FeatureKernel) else None
    bound, bound_text = tolerance or (ROUNDINGS * float(np.finfo(np.float32).eps), f"{ROUNDINGS:,} roundings of float32")
    own = "the kernel is not symmetric, or depends on the other samples of its batch, or its features are not those of its reference"
    number, sample = _difference(context, name, epoch)
    return compare(
        "kernel rows",
        number,
        bound,
        f"{name} at epoch {epoch}: largest difference between K and {against}, over {len(context.rows)} training samples, at sample id "
        f"{context.train_id(sample)}; bound: {bound_text}",
        f"{own}: correct its class; on a GPU set torch.backends.cudnn.allow_tf32 = False",
        seed=context.seed,
    )


def _difference(context: CheckContext, name: str, epoch: int) -> tuple[float, int]:
    """The largest difference of K (S, C, M) from its reference, in units of its scale, and its sample."""
    model, inputs = context.model_at(epoch), context.inputs
    kernel, points = context.worker.kernel(name), context.worker.test_points(context.seed)
    # No more test points than training rows, of which the budget holds several copies of the gradients.
    num_outputs, outputs = context.plan.shape.num_outputs, context.worker.output_weights(context.seed, epoch, points)[: len(inputs)]
    test = context.in_dtype(points.inputs[: len(inputs)])
    if isinstance(kernel, FeatureKernel):
        prepared = prepare_points(kernel, lambda declared: kernel.features(model, test, declared), outputs)
        found = point_block(kernel, kernel.features(model, inputs), prepared, outputs, num_outputs, f"kernel {name}, epoch {epoch}")
        expected, scale = point_reference(kernel, model, inputs, test, outputs, num_outputs)
    else:
        assert isinstance(kernel, PairwiseKernel)
        with torch.no_grad():
            block = computed_pairs(kernel, model, inputs, test)
            exchanged = torch.cat([torch.cat([computed_pairs(kernel, model, z[None], x[None]) for z in test], dim=1) for x in inputs])
        found, expected = (per_output(values, outputs, num_outputs) for values in (block, exchanged))
        scale = torch.full_like(expected, float(expected.abs().max()))
    expected, scale = expected.double().cpu(), scale.double().cpu()
    difference = (found.detach().double().cpu() - expected).abs()
    return largest_sample(difference / torch.where(scale > 0, scale, torch.ones_like(scale)))
