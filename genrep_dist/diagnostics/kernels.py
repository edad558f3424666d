"""Stored kernels against inner products of features that are computed one sample at a time."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from genrep_dist.core.gradients.last_layer import last_layer_features
from genrep_dist.core.gradients.projection import Projection
from genrep_dist.core.kernels.blocks import last_layer_block, ntk_block, per_output
from genrep_dist.diagnostics.finding import Finding, badness, judge
from genrep_dist.diagnostics.fixture import ROUNDINGS, Patient, one_by_one
from genrep_dist.store.artifacts import Artifact

DEVIATIONS = 6
"""How far a product of projected features may lie from the true one: no two thousand million products would."""


def kernel(patient: Patient) -> list[Finding]:
    """Stored K(train, test) of the first seed at the sampled rows: a finding for every kernel made of features or of the user's own.

    It tells the checkpoint at which the stored numbers are furthest from the reference.
    """
    epochs: dict[str, list[int]] = {}
    for name, epoch in patient.plan.kernels_needed():
        epochs.setdefault(name, []).append(epoch)
    return [_finding(patient, name, epochs[name]) for name in epochs]


def _finding(patient: Patient, name: str, epochs: list[int]) -> Finding:
    if name in patient.plan.experiment.kernels:
        reference = partial(_own, patient, name)
        against = "K of single samples, arguments exchanged, relative to the largest"
        cause = "the kernel is not symmetric, or depends on the other samples of its batch: mend its class. Else it was changed"
    else:
        reference = partial(_last_layer if name == "last-layer" else _ntk, patient)
        against = "features taken one by one, in units of |g_i| |g_j|"
        cause = "the stored kernel is not the model's; on a GPU set torch.backends.cudnn.allow_tf32 = False"
    bound, lossy = ROUNDINGS * float(np.finfo(np.float32).eps), f"{ROUNDINGS:,} roundings of float32, as K is stored"
    projection = patient.plan.experiment.projection
    if name == "ntk" and projection is not None:
        deviation = Projection(projection.dim, projection.kind, projection.seed).error
        bound, lossy = (
            DEVIATIONS * deviation,
            f"{DEVIATIONS} standard deviations of a projection to {projection.dim:,} numbers, {deviation:.2g}",
        )
    differences = {epoch: _difference(patient, name, epoch, *reference(epoch)) for epoch in epochs}
    epoch = max(epochs, key=lambda epoch: badness(differences[epoch][0]))
    number, sample = differences[epoch]
    which = f"{name} at epoch {epoch}" + (f", worst of epochs {', '.join(map(str, epochs))}" if len(epochs) > 1 else "")
    return judge(
        "kernel",
        number,
        bound,
        f"{which}: largest difference between stored K and {against}, over {len(patient.rows)} training samples; "
        f"at sample id {patient.train_id(sample)}; bound: {lossy}",
        f"{cause}: delete the folder {_artifact(patient, name, epoch).path} of the store and run again",
        seed=patient.seed,
    )


def _difference(patient: Patient, name: str, epoch: int, expected: Tensor, scale: Tensor) -> tuple[float, int]:
    """The largest difference of stored K (S, C, M) from ``expected``, in units of ``scale``, and the sample that has it."""
    reader = _artifact(patient, name, epoch).reader("kernel")
    stored = torch.from_numpy(np.concatenate([reader.read(slice(row, row + 1)) for row in patient.rows])).double()
    ratios = ((stored - expected).abs() / torch.where(scale > 0, scale, torch.ones_like(scale))).flatten(1).amax(dim=1).tolist()
    sample = max(range(len(ratios)), key=lambda row: badness(ratios[row]))
    return ratios[sample], sample


def _artifact(patient: Patient, name: str, epoch: int) -> Artifact:
    return patient.store.artifact("kernel", patient.plan.keys.kernel(patient.seed, name, epoch))


def _ntk(patient: Patient, epoch: int) -> tuple[Tensor, Tensor]:
    """K (S, C, M) at the sampled rows and |g_i| |g_j| of the same shape, float64, by one backward pass for each output."""
    model = patient.model_at(epoch)
    train = torch.stack([one_by_one(model, sample) for sample in patient.inputs]).double()
    targets = patient.bench.target_outputs(patient.seed).tolist()
    columns, scales = [], []
    for sample, output in zip(patient.test_inputs, targets, strict=True):
        gradient = one_by_one(model, sample, output).double()
        columns.append(ntk_block(train, gradient))
        scales.append(train.norm(dim=2, keepdim=True) * gradient.norm())
    return torch.cat(columns, dim=2).cpu(), torch.cat(scales, dim=2).cpu()


def _last_layer(patient: Patient, epoch: int) -> tuple[Tensor, Tensor]:
    """The same for penultimate activations, one sample at a time."""
    model = patient.model_at(epoch)
    samples = patient.inputs, patient.test_inputs
    train, test = (torch.cat([last_layer_features(model, sample[None]) for sample in inputs]).double() for inputs in samples)
    block = last_layer_block(train, test, patient.bench.target_outputs(patient.seed), patient.plan.shape.num_outputs)
    scale = (train.norm(dim=1)[:, None] * test.norm(dim=1)[None, :]).unsqueeze(1).expand_as(block)
    return block.cpu(), scale.cpu()


def _own(patient: Patient, name: str, epoch: int) -> tuple[Tensor, Tensor]:
    """The same for a kernel of the user's own, with its arguments exchanged, as it must be symmetric; the scale is its largest value."""
    model, compute = patient.model_at(epoch), patient.bench.own_kernels[name]
    with torch.no_grad():
        rows = [torch.cat([compute(model, right[None], left[None]) for right in patient.test_inputs], dim=1) for left in patient.inputs]
    block = torch.cat(rows).double()
    block = per_output(block, patient.bench.target_outputs(patient.seed), patient.plan.shape.num_outputs).cpu()
    return block, torch.full_like(block, float(block.abs().max()))
