"""Stored K(train, test) of the first seed at the sampled rows, against features computed one sample at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from genrep_dist.core.gradients.dense import last_layer_features
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block, per_output
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, backward_gradients, largest_sample, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, largest_key

DEVIATIONS = 6
"""Allowed error of projected products, in standard deviations: exceeded by chance once in about 5e8 products."""


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each feature kernel and each kernel of the user, at the checkpoint with the largest difference."""
    epochs: dict[str, list[int]] = {}
    for name, epoch in context.plan.kernels_needed():
        epochs.setdefault(name, []).append(epoch)
    yield from (_finding(context, name, epochs[name]) for name in epochs)


def _finding(context: CheckContext, name: str, epochs: list[int]) -> Finding:
    reference = _REFERENCES.get(name)
    if reference is None:
        against = "K of single samples with its arguments exchanged, relative to the largest"
        cause = "the kernel is not symmetric, or depends on the other samples of its batch: correct its class. Else it was changed"
    else:
        against = "products of single features, in units of |g_i| |g_j|"
        cause = "the stored kernel does not belong to the model; on a GPU set torch.backends.cudnn.allow_tf32 = False"
    bound, bound_text = ROUNDINGS * float(np.finfo(np.float32).eps), f"{ROUNDINGS:,} roundings of float32, the dtype of stored kernels"
    projection = context.plan.experiment.projection
    if name == "ntk" and projection is not None:
        deviation = Projection(projection.dim, projection.kind, projection.seed).error
        bound = DEVIATIONS * deviation
        bound_text = f"{DEVIATIONS} standard deviations of a projection to {projection.dim:,} numbers, {deviation:.2g}"
    differences: Mapping[int, tuple[float, int]] = {
        epoch: _difference(context, name, epoch, *(reference(context, epoch) if reference else _user_kernel(context, name, epoch)))
        for epoch in epochs
    }
    epoch = largest_key({epoch: number for epoch, (number, _) in differences.items()})
    number, sample = differences[epoch]
    which = f"{name} at epoch {epoch}" + (f", worst of epochs {', '.join(map(str, epochs))}" if len(epochs) > 1 else "")
    artifact = context.store.artifact("kernel", context.plan.keys.kernel(context.seed, name, epoch))
    return compare(
        "kernel",
        number,
        bound,
        f"{which}: largest difference between stored K and {against}, over {len(context.rows)} training samples; "
        f"at sample id {context.train_id(sample)}; bound: {bound_text}",
        f"{cause}: {rerun_text(artifact)}",
        seed=context.seed,
    )


def _difference(context: CheckContext, name: str, epoch: int, expected: Tensor, scale: Tensor) -> tuple[float, int]:
    """The largest difference of stored K (S, C, M) from ``expected``, in units of ``scale``, and its sample."""
    reader = context.store.artifact("kernel", context.plan.keys.kernel(context.seed, name, epoch)).reader("kernel")
    stored = torch.from_numpy(np.concatenate([reader.read(slice(row, row + 1)) for row in context.rows])).double()
    return largest_sample((stored - expected).abs() / torch.where(scale > 0, scale, torch.ones_like(scale)))


def _ntk(context: CheckContext, epoch: int) -> tuple[Tensor, Tensor]:
    """K (S, C, M) at the sampled rows, and |g_i| |g_j| of the same shape. float64, one backward pass per output."""
    model = context.model_at(epoch)
    train = torch.stack([backward_gradients(model, sample) for sample in context.inputs]).double()
    targets = context.bench.target_outputs(context.seed).tolist()
    columns, scales = [], []
    for sample, output in zip(context.test_inputs, targets, strict=True):
        gradient = backward_gradients(model, sample, output).double()
        columns.append(ntk_block(train, gradient))
        scales.append(train.norm(dim=2, keepdim=True) * gradient.norm())
    return torch.cat(columns, dim=2).cpu(), torch.cat(scales, dim=2).cpu()


def _last_layer(context: CheckContext, epoch: int) -> tuple[Tensor, Tensor]:
    """As :func:`_ntk`, for penultimate activations."""
    model = context.model_at(epoch)
    samples = context.inputs, context.test_inputs
    train, test = (torch.cat([last_layer_features(model, sample[None]) for sample in inputs]).double() for inputs in samples)
    block = last_layer_block(train, test, context.bench.target_outputs(context.seed), context.plan.shape.num_outputs)
    scale = (train.norm(dim=1)[:, None] * test.norm(dim=1)[None, :]).unsqueeze(1).expand_as(block)
    return block.cpu(), scale.cpu()


_REFERENCES: Mapping[str, Callable[[CheckContext, int], tuple[Tensor, Tensor]]] = {"ntk": _ntk, "last-layer": _last_layer}
"""Slow reference of each feature kernel."""


def _user_kernel(context: CheckContext, name: str, epoch: int) -> tuple[Tensor, Tensor]:
    """As :func:`_ntk`, for a user's kernel with its arguments exchanged: it must be symmetric. The scale is its largest value."""
    model, compute = context.model_at(epoch), context.bench.own_kernels[name]
    with torch.no_grad():
        rows = [torch.cat([compute(model, right[None], left[None]) for right in context.test_inputs], dim=1) for left in context.inputs]
    block = torch.cat(rows).double()
    block = per_output(block, context.bench.target_outputs(context.seed), context.plan.shape.num_outputs).cpu()
    return block, torch.full_like(block, float(block.abs().max()))
