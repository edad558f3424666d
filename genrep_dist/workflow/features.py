"""Features of training rows and of test points on a worker: computed or read, and checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.factored import FactoredGradients, GramOperand
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.core.kernels.base import FeatureKernel, PairwiseKernel, computed_pairs
from genrep_dist.core.kernels.user import UserKernel
from genrep_dist.errors import NonFiniteError
from genrep_dist.extension import require_returned
from genrep_dist.plan import MAX_BLOCK_ROWS
from genrep_dist.store.bfloat16 import float32_tensor
from genrep_dist.store.features import RowsReader
from genrep_dist.workflow.context import TestPoints, WorkerContext
from genrep_dist.workflow.preconditioner import read_preconditioner
from genrep_dist.workflow.returned import Rows, checked_features, checked_tensor

Pair = tuple[Tensor, Tensor]


def feature_kernel(context: WorkerContext, name: str) -> FeatureKernel:
    kernel = context.kernel(name)
    assert isinstance(kernel, FeatureKernel)
    return kernel


def kernel_at(context: WorkerContext, name: str, seed: int, epoch: int) -> FeatureKernel:
    """A feature kernel at one checkpoint, in the optimizer's metric there if it needs that."""
    kernel = feature_kernel(context, name)
    if not kernel.needs_preconditioner:
        return kernel

    def make() -> FeatureKernel:
        found: object = kernel.at_preconditioner(read_preconditioner(context, seed, epoch))
        require_returned(isinstance(found, FeatureKernel), kernel, "at_preconditioner", "a feature kernel", found)
        assert isinstance(found, FeatureKernel)
        return found

    return context.cached(("kernel", name, seed, epoch), make)


def train_features(
    context: WorkerContext, kernel: str, seed: int, epoch: int, start: int, stop: int, weights: Tensor | None = None
) -> Rows:
    """Features of training rows of a feature kernel, of all outputs or of their sum with ``weights`` (rows, C).

    Those of all outputs are rounded as the experiment says, wherever they are used. NonFiniteError names sample ids.
    """
    computed, where = kernel_at(context, kernel, seed, epoch), f"kernel {kernel}, seed {seed}, epoch {epoch}"
    rows = _features(context, computed, context.model(seed, epoch), where, context.train.inputs[start:stop], weights)
    if weights is None and context.experiment.features.dtype == "bfloat16":
        rows = rows.to(torch.bfloat16).to(torch.float32 if isinstance(rows, FactoredGradients) else rows.dtype)
    refuse_non_finite(rows, context.train.ids[start:stop], f"{kernel} features, seed {seed}, epoch {epoch}")
    return rows


def point_features(context: WorkerContext, kernel: str, seed: int, epoch: int, points: TestPoints) -> Any:
    """Features of what is explained at test points, prepared for :func:`point_block` with many blocks of training features."""

    def make() -> Any:
        computed, where = kernel_at(context, kernel, seed, epoch), f"test points, kernel {kernel}, seed {seed}, epoch {epoch}"

        def compute(outputs: Tensor) -> Rows:
            rows = _features(context, computed, context.model(seed, epoch), where, points.inputs, outputs)
            refuse_non_finite(rows, points.ids, f"{kernel} features of test points, seed {seed}, epoch {epoch}")
            return rows

        return prepare_points(computed, compute, context.output_weights(seed, epoch, points))

    # The points stay alive beside their features, so no other points can have the same id meanwhile.
    return context.cached(("point features", kernel, seed, epoch, id(points)), lambda: (points, make()))[1]


def prepare_points(kernel: FeatureKernel, compute: Callable[[Tensor], Rows], outputs: Tensor) -> Any:
    """The features that ``compute`` has for ``outputs`` (M,) or weights (M, C), prepared for products.

    For weights and a kernel that does not take them: a list of those of each output.
    """
    if needs_each_output(kernel, outputs):
        return [prepare_points(kernel, compute, declared) for declared in each_output(outputs)]
    rows = compute(outputs)
    return rows.as_operand() if isinstance(rows, FactoredGradients) else rows


def needs_each_output(kernel: FeatureKernel, outputs: Tensor) -> bool:
    """Whether K with weighted ``outputs`` is combined from that of all outputs, as the kernel does not take weights."""
    return outputs.is_floating_point() and not kernel.takes_weights


def each_output(weights: Tensor) -> Iterator[Tensor]:
    """Each output as the declared one of all points (M,), of ``weights`` (M, C)."""
    return (torch.full_like(weights[:, 0], output, dtype=torch.int64) for output in range(weights.shape[1]))


def point_block(kernel: FeatureKernel, train: Rows, prepared: Any, outputs: Tensor, num_outputs: int, where: str) -> Tensor:
    """K (B, C, M) of training features with :func:`point_features`, for their explained ``outputs`` (M,) or weights (M, C); checked."""
    if needs_each_output(kernel, outputs):
        total = torch.zeros(())
        for declared, own, weights in zip(each_output(outputs), prepared, outputs.unbind(1), strict=True):
            block = point_block(kernel, train, own, declared, num_outputs, where)
            total = total.to(block) + block * weights.to(block)
        return total
    shape = (len(train), num_outputs, len(outputs))
    return checked_tensor(kernel.block(train, prepared, outputs, num_outputs), shape, kernel, "block", where)


def point_reference(kernel: FeatureKernel, model: nn.Module, train: Tensor, test: Tensor, outputs: Tensor, num_outputs: int) -> Pair:
    """:meth:`FeatureKernel.reference` for ``outputs`` (M,), or for weights (M, C): K (B, C, M) and the scale of its errors."""
    if not outputs.is_floating_point():
        return kernel.reference(model, train, test, outputs, num_outputs)
    block, scale = torch.zeros(()), torch.zeros(())
    for declared, weights in zip(each_output(outputs), outputs.double().cpu().unbind(1), strict=True):
        found, its_scale = kernel.reference(model, train, test, declared, num_outputs)
        block, scale = block + weights * found, scale + weights.abs() * its_scale
    return block, scale


def dense_features(context: WorkerContext, kernel: str, seed: int, epoch: int, start: int, stop: int) -> Tensor:
    """Features of training rows as numbers, on the CPU: (rows, C, D), or (rows, L) of a kernel that all outputs share.

    No more factors are held than those of one pass.
    """
    step, parts = _allowed_rows(context, feature_kernel(context, kernel)), []
    for at in range(start, stop, step):
        rows = train_features(context, kernel, seed, epoch, at, min(at + step, stop))
        parts.append((rows.to_dense() if isinstance(rows, FactoredGradients) else rows).cpu())
    return torch.cat(parts)


def dense_point_features(context: WorkerContext, kernel: str, seed: int, epoch: int, points: TestPoints, num_outputs: int) -> Tensor:
    """Features (M, D) float64 of what is explained at test points, on the CPU.

    Where all outputs share L features, D = C L: they stand in the place of the point's own output, or weighted in that of each.
    """
    found = point_features(context, kernel, seed, epoch, points)
    rows: Tensor = (found.gradients.to_dense()[:, 0] if isinstance(found, GramOperand) else found).double().cpu()
    if dense_features(context, kernel, seed, epoch, 0, 1).dim() > 2:
        return rows
    chosen = context.output_weights(seed, epoch, points).cpu()
    weights = chosen if chosen.is_floating_point() else torch.nn.functional.one_hot(chosen, num_outputs)
    return (weights.double().unsqueeze(2) * rows.unsqueeze(1)).flatten(1)


def pass_rows(context: WorkerContext, kernel: FeatureKernel, model: nn.Module) -> int:
    """Rows of which the kernel's features are computed in one pass: as many as it prefers, and as the plan allows."""
    allowed = _allowed_rows(context, kernel)
    return min(allowed, _preferred_rows(context, kernel, model) or allowed)


def _allowed_rows(context: WorkerContext, kernel: FeatureKernel) -> int:
    return context.job.gradient_rows if kernel.factored else min(context.job.prediction_rows, MAX_BLOCK_ROWS)


def _preferred_rows(context: WorkerContext, kernel: FeatureKernel, model: nn.Module) -> int | None:
    # Of the first training rows, so that all workers decide alike.
    found: object = kernel.rows_per_pass(model, context.train.inputs)
    require_returned(found is None or (isinstance(found, int) and found > 0), kernel, "rows_per_pass", "None or 1 or more", found)
    return found if isinstance(found, int) else None


def _features(
    context: WorkerContext, kernel: FeatureKernel, model: nn.Module, where: str, inputs: Tensor, outputs: Tensor | None = None
) -> Rows:
    """The kernel's features of ``inputs`` (B, ...), of ``outputs`` (B,) if they are given; no pass takes more rows than the plan allows."""
    step, preferred = _allowed_rows(context, kernel), _preferred_rows(context, kernel, model) or len(inputs)
    step = len(inputs) if preferred <= step else step
    parts = []
    for at in range(0, len(inputs), step):
        rows, chosen = inputs[at : at + step], None if outputs is None else outputs[at : at + step]
        parts.append(checked_features(kernel.features(model, rows, chosen), len(rows), kernel, where, of_points=outputs is not None))
    if len(parts) == 1:
        return parts[0]
    factored = [part for part in parts if isinstance(part, FactoredGradients)]
    return FactoredGradients.cat(factored) if factored else torch.cat(parts)  # type: ignore[arg-type]


def train_jacobians(context: WorkerContext, seed: int, epoch: int, start: int, stop: int) -> Tensor:
    """Whole Jacobians (rows, C, P) of training rows, at most those of one pass."""
    rows = per_sample_gradients(context.model(seed, epoch), context.train.inputs[start:stop])
    refuse_non_finite(rows, context.train.ids[start:stop], f"gradients, seed {seed}, epoch {epoch}")
    return rows


def point_gradients(context: WorkerContext, seed: int, epoch: int, points: TestPoints) -> Tensor:
    """Whole gradients (M, P) of the explained outputs of test points."""
    rows, step = torch.empty(0), context.job.gradient_rows
    for at in range(0, len(points), step):
        chosen = context.output_weights(seed, epoch, points)[at : at + step]
        some = per_sample_gradients(context.model(seed, epoch), points.inputs[at : at + step], chosen)
        rows = some.new_empty(len(points), some.shape[1]) if at == 0 else rows
        rows[at : at + step] = some
    refuse_non_finite(rows, points.ids, f"gradients of test points, seed {seed}, epoch {epoch}")
    return rows


def pairwise_block(context: WorkerContext, kernel: str, seed: int, epoch: int, left: Tensor, right: Tensor) -> Tensor:
    """K (A, B) of a pairwise kernel, checked: shape, floating point, finite."""
    computed = context.kernel(kernel)
    assert isinstance(computed, PairwiseKernel)
    with torch.no_grad():
        block = computed_pairs(computed, context.model(seed, epoch), left, right)
    owner, method = (computed.function, "__call__") if isinstance(computed, UserKernel) else (computed, "pairs")
    return checked_tensor(block, (len(left), len(right)), owner, method, f"kernel {kernel}, seed {seed}, epoch {epoch}")


def features_reader(context: WorkerContext, kernel: str, seed: int, epoch: int, *, stored: bool) -> Callable[[int, int], Rows]:
    """Features of training rows by (start, stop): read where they are stored, else computed."""
    if not stored:
        return lambda start, stop: train_features(context, kernel, seed, epoch, start, stop)
    artifact = context.store.artifact("features", context.keys.features(seed, kernel, epoch))
    if feature_kernel(context, kernel).factored:
        factored = RowsReader(artifact)
        return lambda start, stop: factored.read(start, stop).to(torch.float32, context.device)
    dense = artifact.reader("features")
    return lambda start, stop: float32_tensor(dense.read(slice(start, stop))).to(context.device)


def refuse_non_finite(rows: Rows, ids: Tensor, where: str) -> None:
    """NonFiniteError that names the samples (B,) whose features hold NaN or Inf."""
    finite = rows.finite_rows() if isinstance(rows, FactoredGradients) else torch.isfinite(rows.reshape(len(rows), -1)).all(dim=1)
    if not bool(finite.all()):
        bad = ids[~finite.to(ids.device)]
        raise NonFiniteError(
            "NaN or Inf in per-sample features",
            where=f"{where}; sample ids {bad[:5].tolist()}",
            expected="finite numbers",
            got=f"{len(bad)} bad rows",
            remedy="look at these samples and at the scale of the model's parameters",
        )
