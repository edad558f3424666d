"""Eq. 8, f_T - f_0 = sum_i alpha_i K(x_i, .): exact for models linear in their parameters under plain SGD.

For other runs the difference is the linearisation gap, for information: the part of the training that the final NTK does not explain.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import as_real, model_outputs, num_parameters
from genrep_dist.core.importances.tracking import TrackedDerivative
from genrep_dist.diagnostics.checks.dropout import dropout_layers
from genrep_dist.diagnostics.checks.normalisation import normalising_layers
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, largest_relative, rerun_text, trainable
from genrep_dist.diagnostics.finding import Finding, compare, green
from genrep_dist.training.torch_private import vector_jacobian_product
from genrep_dist.workflow.preconditioner import needed_epochs, read_preconditioner

_LINEARITY_ROWS = 4
_BATCH = 256


def check(context: CheckContext) -> Iterator[Finding]:
    if TrackedDerivative.array in context.train_artifact(context.seed).manifest().get("absent", ()):
        yield green("tracking identity", "the problem's own training function reports no steps, and no method needs them")
        return
    direction = _weighted_gradient(context)
    inputs = torch.cat([context.inputs, context.test_inputs])
    before, after = (_outputs(context, model, inputs) for model in (context.model_at(0), context.model))
    predicted = torch.cat([_predicted(context, sample[None], direction) for sample in inputs])
    gap = float((after - before - predicted).abs().max())
    change = float((after - before).abs().max())
    if change > 0 and context.plan.keys.epochs in needed_epochs(context.plan.keys):
        metric = read_preconditioner(context.worker, context.seed, context.plan.keys.epochs)
        predicted_there = torch.cat([_predicted(context, sample[None], direction / metric) for sample in inputs])
        yield green(
            "tracking identity",
            "for information, the gap in the optimizer's metric at the final parameters: the largest |f_T - f_0 - sum_i alpha_i K(x_i, .)| "
            "with K = J D^-1 J^T, as a share of the largest |f_T - f_0|; zero for a model that is linear in its parameters if D never "
            "changed and there was no momentum",
            number=float((after - before - predicted_there).abs().max()) / change,
            seed=context.seed,
        )
    reason = _why_not_exact(context)
    if reason:
        text = (
            f"not applicable: {reason}. For information, the linearisation gap at the final NTK: the largest "
            "|f_T - f_0 - sum_i alpha_i K_T(x_i, .)|, as a share of the largest |f_T - f_0|"
        )
        yield green("tracking identity", text, number=gap / change if change > 0 else 0.0, seed=context.seed)
        return
    scale = float(torch.cat([before, after]).abs().max()) or 1.0
    yield compare(
        "tracking identity",
        gap / scale,
        (ROUNDINGS + context.num_steps) * context.rounding / ROUNDINGS,
        "largest |f_T - f_0 - sum_i alpha_i K(x_i, .)| relative to the largest output: Eq. 8 is exact, as the model is linear in its "
        f"parameters and was trained by plain SGD; bound: {ROUNDINGS:,} roundings, and one for each of {context.num_steps:,} steps",
        f"the stored tracking importances do not belong to this training: {rerun_text(context, context.train_artifact(context.seed))}",
        seed=context.seed,
    )


def _weighted_gradient(context: CheckContext) -> Tensor:
    """sum_i sum_c alpha_ic df_c(x_i)/dtheta (P,) float64 with the tracking importances, at the final parameters.

    Its product with a gradient is sum_i alpha_i K(x_i, .). Needs one backward pass over the training set and no kernel.
    """
    alpha = torch.from_numpy(context.train_artifact(context.seed).read("tracking"))
    parameters, inputs = trainable(context.model), context.worker.train.inputs
    total = torch.zeros(num_parameters(context.model), dtype=torch.float64, device=context.worker.device)
    step, sizes = min(_BATCH, context.plan.gradient_rows), [as_real(p.detach()).numel() for p in parameters]
    for start in range(0, len(inputs), step):
        values = model_outputs(context.model, inputs[start : start + step])
        weights = alpha[start : start + step].to(values)
        gradients = vector_jacobian_product(values, parameters, weights, allow_unused=True)
        for part, gradient in zip(torch.split(total, sizes), gradients, strict=True):
            if gradient is not None:
                part.add_(as_real(gradient.to_dense()).reshape(-1))
    return total


def _predicted(context: CheckContext, inputs: Tensor, direction: Tensor) -> Tensor:
    """The change of the checked outputs (1, C) of one sample along ``direction`` (P,)."""
    changes = [context.gradients(context.model, inputs, output).double() @ direction for output in context.outputs]
    return changes[0] if context.outputs == (None,) else torch.stack(changes, dim=1)


def _why_not_exact(context: CheckContext) -> str:
    """Why Eq. 8 is not exact for this run; empty if it is."""
    if context.plan.shape.identity_gap_reasons:
        return "the optimizer is not plain SGD"
    if context.plan.keys.recipe["precision"] != "full":
        return "the training rounds its products"
    if any(normalising_layers(context.model)) or dropout_layers(context.model):
        return "the model is another function in training mode than in evaluation mode"
    return "" if _is_linear(context) else "the model is not linear in its parameters"


def _is_linear(context: CheckContext) -> bool:
    """Whether the gradients of a few samples are the same at the final and at random parameters."""
    inputs = context.inputs[:_LINEARITY_ROWS]
    other = context.model_at(context.plan.keys.epochs)
    generator = context.generator("parameters")
    with torch.no_grad():
        for parameter in trainable(other):
            parameter.copy_(torch.from_numpy(generator.standard_normal(tuple(parameter.shape))))
    for output in context.outputs:
        here = context.gradients(context.model, inputs, output)
        difference, _ = largest_relative(context.gradients(other, inputs, output).sub_(here), here)
        if not difference <= context.rounding:
            return False
    return True


def _outputs(context: CheckContext, model: nn.Module, inputs: Tensor) -> Tensor:
    """The checked outputs of ``inputs``, float64."""
    outputs = context.worker.predict(model, inputs).double()
    return outputs if context.outputs == (None,) else outputs[:, list(context.outputs)]
