"""Stored K(train, test) of the first seed at the sampled rows, and its products with importances, against the kernel's slow reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from genrep_dist.core.kernels.base import FeatureKernel, PairwiseKernel, computed_pairs
from genrep_dist.core.kernels.blocks import per_output
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, largest_sample, rerun_text
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key
from genrep_dist.plan import KernelAt, TermAt
from genrep_dist.store.artifacts import Artifact
from genrep_dist.workflow.features import point_reference
from genrep_dist.workflow.importances import alpha


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for each feature kernel and each pairwise kernel, at the checkpoint with the largest difference.

    And one for the products of each kernel with importances that were computed without K.
    """
    needs = context.plan.needs
    yield from (_finding(context, name, epochs) for name, epochs in _kernels(needs.cross).items())
    for name in sorted({term[0] for term in needs.terms}):
        yield _term_finding(context, [term for term in needs.terms if term[0] == name])


def recomputed(context: CheckContext) -> Iterator[Tensor]:
    for name, epochs in _kernels(context.plan.needs.features).items():
        references = (_reference(context, name, epoch) for epoch in epochs)
        yield torch.cat([expected / torch.where(scale > 0, scale, 1.0) for expected, scale in references])


def _kernels(pairs: tuple[KernelAt, ...]) -> dict[str, list[int]]:
    """The epochs of each kernel."""
    epochs: dict[str, list[int]] = {}
    for name, epoch in pairs:
        epochs.setdefault(name, []).append(epoch)
    return epochs


def _finding(context: CheckContext, name: str, epochs: list[int]) -> Finding:
    kernel = context.worker.kernel(name)
    tolerance = None
    if isinstance(kernel, FeatureKernel):
        against = "products of single features, in units of |g_i| |g_j|"
        remedy = (
            "the stored kernel does not belong to the model; on a GPU set torch.backends.cudnn.allow_tf32 = False. If code that the model "
            "calls has changed since the run, restore it, or run in a new store; else"
        )
        tolerance = kernel.tolerance()
    else:
        against = "K of single samples with its arguments exchanged, relative to the largest"
        remedy = (
            "if the kernel is not symmetric, or depends on the other samples of its batch, correct its class and run the experiment again; "
            "else the stored kernel was changed:"
        )
    bound, bound_text = tolerance or _rounding("the dtype of stored kernels")
    if isinstance(kernel, FeatureKernel) and context.plan.experiment.features.dtype == "bfloat16":
        # Of a gradient that is stored as two factors, both are rounded.
        bound, bound_text = bound + 2**-7, f"{bound_text}, and features rounded to bfloat16"
    differences: Mapping[int, tuple[float, int]] = {
        epoch: _difference(context, name, epoch, *_reference(context, name, epoch)) for epoch in epochs
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
        f"{remedy} {rerun_text(context, artifact)}",
        seed=context.seed,
    )


def _term_finding(context: CheckContext, terms: list[TermAt]) -> Finding:
    """The products of one feature kernel with importances."""
    kernel = context.worker.kernel(terms[0][0])
    assert isinstance(kernel, FeatureKernel)
    bound, bound_text = kernel.tolerance() or _rounding("the dtype of features")
    differences = {term: _term_difference(context, term) for term in terms}
    worst = largest_key({term: number for term, (number, _) in differences.items()})
    (name, epoch, importance, _), (number, sample) = worst, differences[worst]
    return compare(
        "kernel",
        number,
        bound,
        f"{name} at epoch {epoch} with {importance}, worst of {count_text(len(terms), 'product')}: largest difference between stored "
        f"sum_c alpha_c K_c and products of single features, in units of sum_c |alpha_c| |g_ic| |g_j|, over {len(context.rows)} training "
        f"samples; at sample id {context.train_id(sample)}; bound: {bound_text}",
        "the stored products do not belong to the model; on a GPU set torch.backends.cudnn.allow_tf32 = False. If code that the model "
        f"calls has changed since the run, restore it, or run in a new store; else {rerun_text(context, _term_artifact(context, worst))}",
        seed=context.seed,
    )


def _term_difference(context: CheckContext, term: TermAt) -> tuple[float, int]:
    """The largest difference of stored products (S, M) from those of the reference, in units of its scale, and its sample."""
    kernel, epoch, importance, importance_epoch = term
    weights = alpha(context.worker, importance, context.seed, kernel, importance_epoch)[list(context.rows), :, None]
    expected, scale = _reference(context, kernel, epoch)
    artifact = _term_artifact(context, term)
    return _largest(context, artifact, "phi", (weights * expected).sum(dim=1), (weights.abs() * scale).sum(dim=1))


def _term_artifact(context: CheckContext, term: TermAt) -> Artifact:
    return context.store.artifact("term", context.plan.keys.term(context.seed, *term))


def _rounding(of: str) -> tuple[float, str]:
    return ROUNDINGS * float(np.finfo(np.float32).eps), f"{ROUNDINGS:,} roundings of float32, {of}"


def _difference(context: CheckContext, name: str, epoch: int, expected: Tensor, scale: Tensor) -> tuple[float, int]:
    """The largest difference of stored K (S, C, M) from ``expected``, in units of ``scale``, and its sample."""
    artifact = context.store.artifact("kernel", context.plan.keys.kernel(context.seed, name, epoch))
    return _largest(context, artifact, "kernel", expected, scale)


def _largest(context: CheckContext, artifact: Artifact, array: str, expected: Tensor, scale: Tensor) -> tuple[float, int]:
    """The largest difference of an array at the sampled rows from ``expected`` (S, ...), in units of ``scale``, and its sample."""
    reader = artifact.reader(array)
    stored = torch.from_numpy(np.concatenate([reader.read(slice(row, row + 1)) for row in context.rows])).double()
    return largest_sample((stored - expected).abs() / torch.where(scale > 0, scale, torch.ones_like(scale)))


def _reference(context: CheckContext, name: str, epoch: int) -> tuple[Tensor, Tensor]:
    """K (S, C, M) float64 at the sampled rows from single samples, and the scale of its errors, of the same shape.

    A pairwise kernel is computed with its arguments exchanged, as it must be symmetric; its scale is its largest value.
    """
    kernel, model, points = context.kernel_at(name, epoch), context.model_at(epoch), context.worker.test_points(context.seed)
    num_outputs, outputs = context.plan.shape.num_outputs, context.worker.output_weights(context.seed, epoch, points)
    if isinstance(kernel, FeatureKernel):
        # The gradients of the points, twice in float64, fit half the budget.
        step = max(1, context.memory_budget_bytes // 2 // (16 * context.plan.shape.num_parameters))
        parts = (slice(at, at + step) for at in range(0, len(points), step))
        found = [
            point_reference(kernel, model, context.inputs, context.in_dtype(points.inputs[at]), outputs[at], num_outputs) for at in parts
        ]
        blocks, scales = zip(*found, strict=True)
        return torch.cat(blocks, dim=2), torch.cat(scales, dim=2)
    assert isinstance(kernel, PairwiseKernel)
    with torch.no_grad():
        rows = [
            torch.cat([computed_pairs(kernel, model, right[None], left[None]) for right in context.in_dtype(points.inputs)], dim=1)
            for left in context.inputs
        ]
    block = per_output(torch.cat(rows).double(), outputs, num_outputs).cpu()
    return block, torch.full_like(block, float(block.abs().max()))
