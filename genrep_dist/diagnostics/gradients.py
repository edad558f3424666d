"""Gradients and outputs against slow references: one sample at a time, one backward pass at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.model import model_outputs
from genrep_dist.core.gradients.per_sample import per_sample_gradients
from genrep_dist.diagnostics.finding import Finding, badness, judge
from genrep_dist.diagnostics.fixture import ROUNDINGS, Patient, largest_relative, one_by_one
from genrep_dist.training.loop import predict

_BATCHES = (1, 7)
_LESS_PRECISE = "on a GPU set torch.backends.cudnn.allow_tf32 = False; "


def per_sample(patient: Patient) -> list[Finding]:
    """Per-sample gradients of the final model (all at once, as the kernels take them) against one backward pass for each output."""
    fast = per_sample_gradients(patient.model, patient.inputs)
    slow = torch.stack([one_by_one(patient.model, sample) for sample in patient.inputs])
    number, sample = largest_relative(fast - slow, slow)
    finding = judge(
        "gradients",
        number,
        patient.rounding,
        f"largest relative difference between per-sample gradients and one-by-one backward over {len(patient.rows)} samples, at sample id "
        f"{patient.train_id(sample)}; bound: {ROUNDINGS:,} roundings of {_dtype(fast)}",
        _LESS_PRECISE + "else the model holds something that is computed differently in a batch: find the layer by removing others",
        seed=patient.seed,
    )
    return [finding]


def batch_size(patient: Patient) -> list[Finding]:
    """Outputs and features of the sampled rows in batches of 1, 7 and all of them."""
    model = patient.model
    wanted: list[tuple[str, Callable[[Tensor], Tensor]]] = [("outputs", lambda inputs: model_outputs(model, inputs).detach())]
    kernels = {kernel for kernel, _ in patient.plan.kernels_needed()}
    if "ntk" in kernels:
        wanted.append(("gradients", lambda inputs: per_sample_gradients(model, inputs)))
    if "last-layer" in kernels:
        wanted.append(("last-layer features", lambda inputs: last_layer_features(model, inputs)))
    return [_invariance(patient, what, compute) for what, compute in wanted]


def reproduction(patient: Patient) -> list[Finding]:
    """The final checkpoint, loaded again, gives the test outputs that the run stored."""
    stored = torch.from_numpy(patient.train_artifact(patient.seed).read("outputs_test")).double()
    found = predict(patient.model, patient.bench.test.inputs).cpu()
    gap = (found.double() - stored).abs()
    number = float(gap.max() / _or_one(stored.abs().max()))
    worst = int(gap.amax(dim=1).argmax())
    finding = judge(
        "reproduction",
        number,
        patient.rounding,
        "largest difference between the loaded model's test outputs and the stored ones, relative to the largest output, "
        f"at test sample id {int(patient.bench.test.ids[worst])}; bound: {ROUNDINGS:,} roundings of {_dtype(found)}",
        "the checkpoint or the outputs were changed, or the model's code draws random numbers: "
        f"delete the folder {patient.train_artifact(patient.seed).path} of the store and run again",
        seed=patient.seed,
    )
    return [finding]


def _invariance(patient: Patient, what: str, compute: Callable[[Tensor], Tensor]) -> Finding:
    inputs = patient.inputs
    sizes = sorted({*(size for size in _BATCHES if size < len(inputs)), len(inputs)})
    results = [torch.cat([compute(inputs[i : i + size]) for i in range(0, len(inputs), size)]) for size in sizes]
    reference = results[0]
    if what == "outputs":
        # Outputs have no size of their own: near zero any rounding is large beside them.
        reference = torch.full_like(reference, float(_or_one(reference.abs().max())))
    number, sample = max(
        (largest_relative(_rows(result - results[0]), _rows(reference)) for result in results[1:]),
        key=lambda pair: badness(pair[0]),
        default=(0.0, 0),
    )
    return judge(
        "batch size",
        number,
        patient.rounding,
        f"{what}: largest relative difference between batches of {', '.join(map(str, sizes))}, at sample id {patient.train_id(sample)}; "
        f"bound: {ROUNDINGS:,} roundings of {_dtype(reference)}",
        "an output depends on the other samples of its batch, or on chance: look for normalisation or statistics over dimension 0, "
        "and for random numbers drawn in evaluation",
        seed=patient.seed,
    )


def _rows(values: Tensor) -> Tensor:
    """(S, C) outputs and (S, L) or (S, C, P) features, with a last dimension to take norms over."""
    return values.flatten(1)


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
