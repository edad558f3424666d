"""The tracking identity f_T - f_0 = sum_i alpha_i K(x_i, .) (Eq. 8), where it must hold, and how far it is from holding elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.diagnostics.finding import Finding, green, judge
from genrep_dist.diagnostics.fixture import ROUNDINGS, Patient, largest_relative, trainable
from genrep_dist.diagnostics.model_modes import dropout_layers, normalising_layers

_PROBED_ROWS = 4
_BATCH = 256


def tracking(patient: Patient) -> list[Finding]:
    """Eq. 8: f_T - f_0 = sum_i alpha_i K(x_i, .) where it must hold, in models linear in their parameters under plain SGD.

    Elsewhere the same difference is the linearisation gap, for information: what the final parameters' NTK misses of the training.
    """
    seed, keys = patient.seed, patient.plan.keys
    direction = _weighted_gradient(patient)
    inputs = torch.cat([patient.inputs, patient.test_inputs])
    before = _no_grad(patient.model_at(0), inputs)
    after = _no_grad(patient.model, inputs)
    predicted = torch.cat([per_sample_gradients(patient.model, sample[None]).double() @ direction for sample in inputs])
    gap = float((after - before - predicted).abs().max())
    change = float((after - before).abs().max())
    reason = _why_not_exact(patient)
    if reason:
        share = gap / change if change > 0 else 0.0
        text = (
            f"not applicable: {reason}. For information, the linearisation gap at the final NTK: the largest "
            "|f_T - f_0 - sum_i alpha_i K_T(x_i, .)|, as a share of the largest |f_T - f_0|"
        )
        return [green("tracking identity", text, number=share, seed=seed)]
    scale = float(torch.cat([before, after]).abs().max()) or 1.0
    epsilon = patient.rounding / ROUNDINGS
    finding = judge(
        "tracking identity",
        gap / scale,
        (ROUNDINGS + patient.num_steps) * epsilon,
        "largest |f_T - f_0 - sum_i alpha_i K(x_i, .)| relative to the largest output: the model is linear in its parameters and plain SGD "
        f"trained it, so Eq. 8 is exact; bound: {ROUNDINGS:,} roundings and one for each of {patient.num_steps:,} steps",
        "the stored tracking importances are not this training's: delete the folder "
        f"{patient.store.artifact('train', keys.train(seed)).path} of the store and run again",
        seed=seed,
    )
    return [finding]


def _weighted_gradient(patient: Patient) -> Tensor:
    """Sum_i sum_c alpha_ic df_c(x_i)/dtheta (P,) float64 with the tracking importances, at the final parameters.

    Its product with a gradient is sum_i alpha_i K(x_i, .), without any kernel: one backward pass over the training set.
    """
    alpha = torch.from_numpy(patient.train_artifact(patient.seed).read("tracking"))
    parameters, inputs = trainable(patient.model), patient.bench.train.inputs
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=patient.bench.device)
    for start in range(0, len(inputs), _BATCH):
        values = model_outputs(patient.model, inputs[start : start + _BATCH])
        weights = alpha[start : start + _BATCH].to(values)
        gradients = torch.autograd.grad(values, parameters, weights, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        total += torch.cat([part.reshape(-1) for part in parts]).double()
    return total


def _why_not_exact(patient: Patient) -> str:
    """Why Eq. 8 need not hold exactly; empty where it must."""
    if not all(patient.plan.keys.recipe[name] == 0 for name in ("momentum", "weight_decay")):
        return "the optimiser is not plain SGD"
    if patient.plan.keys.recipe["precision"] != "full":
        return "the training rounds its products"
    mixing, frozen = normalising_layers(patient.model)
    if mixing or frozen or dropout_layers(patient.model):
        return "the model is another function in training than in evaluation"
    return "" if _is_linear(patient) else "the model is not linear in its parameters"


def _is_linear(patient: Patient) -> bool:
    """Whether the gradients of a few samples are the same at the final parameters and at random ones."""
    inputs = patient.inputs[:_PROBED_ROWS]
    other = patient.model_at(patient.plan.keys.epochs)
    draws = patient.generator("parameters")
    with torch.no_grad():
        for parameter in trainable(other):
            parameter.copy_(torch.from_numpy(draws.standard_normal(tuple(parameter.shape))))
    here = per_sample_gradients(patient.model, inputs)
    difference, _ = largest_relative(per_sample_gradients(other, inputs) - here, here)
    return difference <= patient.rounding


def _no_grad(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model_outputs(model, inputs).double()
