"""Eq. 8, f_T - f_0 = sum_i alpha_i K(x_i, .): exact for models linear in their parameters under plain SGD.

For other runs the difference is the linearisation gap, for information: the part of the training that the final NTK does not explain.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import as_real, model_outputs, num_parameters
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.diagnostics.checks.dropout import dropout_layers
from genrep_dist.diagnostics.checks.normalisation import normalising_layers
from genrep_dist.diagnostics.context import ROUNDINGS, CheckContext, largest_relative, rerun_text, trainable
from genrep_dist.diagnostics.finding import Finding, compare, green

_LINEARITY_ROWS = 4
_BATCH = 256


def check(context: CheckContext) -> Iterator[Finding]:
    direction = _weighted_gradient(context)
    inputs = torch.cat([context.inputs, context.test_inputs])
    before = _outputs(context.model_at(0), inputs)
    after = _outputs(context.model, inputs)
    predicted = torch.cat([per_sample_gradients(context.model, sample[None]).double() @ direction for sample in inputs])
    gap = float((after - before - predicted).abs().max())
    change = float((after - before).abs().max())
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
        f"the stored tracking importances do not belong to this training: {rerun_text(context.train_artifact(context.seed))}",
        seed=context.seed,
    )


def _weighted_gradient(context: CheckContext) -> Tensor:
    """sum_i sum_c alpha_ic df_c(x_i)/dtheta (P,) float64 with the tracking importances, at the final parameters.

    Its product with a gradient is sum_i alpha_i K(x_i, .). Needs one backward pass over the training set and no kernel.
    """
    alpha = torch.from_numpy(context.train_artifact(context.seed).read("tracking"))
    parameters, inputs = trainable(context.model), context.worker.train.inputs
    total = torch.zeros(num_parameters(context.model), dtype=torch.float64, device=context.worker.device)
    for start in range(0, len(inputs), _BATCH):
        values = model_outputs(context.model, inputs[start : start + _BATCH])
        weights = alpha[start : start + _BATCH].to(values)
        gradients = torch.autograd.grad(values, parameters, weights, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in zip(gradients, parameters, strict=True)]
        total += torch.cat([as_real(part).reshape(-1) for part in parts]).double()
    return total


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
    here = per_sample_gradients(context.model, inputs)
    difference, _ = largest_relative(per_sample_gradients(other, inputs) - here, here)
    return difference <= context.rounding


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model_outputs(model, inputs).double()
