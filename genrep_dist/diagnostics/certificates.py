"""Importances that are solved for on a gram: whether alpha solves its equation, and how far K alpha is from the model (efficiency)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrep_dist.diagnostics.finding import Finding, badness, counted, judge
from genrep_dist.diagnostics.fixture import Patient
from genrep_dist.diagnostics.grams import product
from genrep_dist.store.artifacts import Artifact

GAP_SHARE = 0.1
"""The efficiency gap, as a share of the outputs' range, from which the axiom counts as far from satisfied."""

_CLOSER = {
    "surrogate": "lower surrogate.lambda, which fits closer",
    "descent": "raise descent.epochs or descent.learning_rate, which fit closer",
}


def residual(patient: Patient) -> list[Finding]:
    """The surrogate's ||alpha + dL(K alpha)/(n lambda)|| / ||alpha||: as certified, and computed again for the first seed."""
    findings = []
    for importance, kernel, epoch in patient.plan.solved_needed():
        if importance != "surrogate":
            continue
        numbers = {seed: float(_certificate(patient, importance, seed, kernel, epoch)["residual"]) for seed in patient.seeds}
        again = _residual_again(patient, kernel, epoch)
        numbers[patient.seed] = max(numbers[patient.seed], again, key=badness)
        seed = max(numbers, key=lambda seed: badness(numbers[seed]))
        findings.append(
            judge(
                "surrogate residual",
                numbers[seed],
                patient.plan.experiment.surrogate.tolerance,
                f"{kernel} at epoch {epoch}: largest stationarity residual, as certified for {counted(len(numbers), 'seed')} and computed "
                f"again from stored alpha and gram for seed {patient.seed} ({again:.2g}); bound: surrogate.tolerance",
                "alpha is not this gram's projection: raise surrogate.max_iterations if unconverged ones were allowed, else delete "
                f"{_artifact(patient, importance, seed, kernel, epoch).path} of the store, and run again",
                seed=seed,
            )
        )
    return findings


def rate(patient: Patient) -> list[Finding]:
    """Kernel gradient descent's largest rate against the largest stable one, as certified."""
    findings = []
    for importance, kernel, epoch in patient.plan.solved_needed():
        if importance != "descent":
            continue
        certificates = {seed: _certificate(patient, importance, seed, kernel, epoch) for seed in patient.seeds}
        shares = {seed: float(c["largest_rate"]) / float(c["largest_stable_rate"]) for seed, c in certificates.items()}
        seed = max(shares, key=lambda seed: badness(shares[seed]))
        findings.append(
            judge(
                "descent rate",
                shares[seed],
                1.0,
                f"{kernel} at epoch {epoch}: largest learning rate in units of the largest stable one, worst of "
                f"{counted(len(shares), 'seed')}; bound: beyond it a step over all samples leads away from the minimum",
                "lower descent.learning_rate",
                seed=seed,
                worse="amber",
            )
        )
    return findings


def efficiency(patient: Patient) -> list[Finding]:
    """The efficiency gap max |f - K alpha| over training samples and over test points, as a share of the outputs' range."""
    findings = []
    softmax = patient.context.loss.name == "softmax"
    note = "; it includes each sample's mean logit, which a softmax loss cannot see" if softmax else ""
    seeds = counted(len(patient.seeds), "seed")
    spread = {seed: float(np.ptp(patient.train_outputs(seed, patient.plan.keys.epochs))) for seed in patient.seeds}
    for importance, kernel, epoch in patient.plan.solved_needed():
        certified = {seed: float(_certificate(patient, importance, seed, kernel, epoch)["efficiency_gap"]) for seed in patient.seeds}
        on_test = {seed: _gap_on_test(patient, importance, seed, kernel, epoch) for seed in patient.seeds}
        for where, gaps in (("training samples", certified), ("test points", on_test)):
            shares = {seed: gap / spread[seed] if spread[seed] > 0 else gap for seed, gap in gaps.items()}
            seed = max(shares, key=lambda seed: badness(shares[seed]))
            findings.append(
                judge(
                    "efficiency",
                    shares[seed],
                    GAP_SHARE,
                    f"{importance} on {kernel} at epoch {epoch}, {where}: largest |f - K alpha| is {gaps[seed]:.3g}, as a share of the "
                    f"range {spread[seed]:.3g} of the outputs, worst of {seeds}{note}; bound: beyond a tenth of the range the "
                    "explanations do not sum to the prediction",
                    f"{_CLOSER[importance]}. Until then this method's scores do not add up to f; their order may still serve",
                    seed=seed,
                    worse="amber",
                )
            )
    return findings


def _artifact(patient: Patient, importance: str, seed: int, kernel: str, epoch: int) -> Artifact:
    return patient.store.artifact(importance, patient.plan.keys.solved(importance, seed, kernel, epoch))


def _certificate(patient: Patient, importance: str, seed: int, kernel: str, epoch: int) -> dict[str, Any]:
    certificate: dict[str, Any] = _artifact(patient, importance, seed, kernel, epoch).manifest()["certificate"]
    return certificate


def _residual_again(patient: Patient, kernel: str, epoch: int) -> float:
    loss = patient.context.loss
    alpha: npt.NDArray[np.float64] = _artifact(patient, "surrogate", patient.seed, kernel, epoch).read("alpha")
    lam = float(_certificate(patient, "surrogate", patient.seed, kernel, epoch)["lam"])
    # Whatever the kernel's checkpoint, the final model is what is projected, onto its own soft predictions.
    targets = loss.soft_targets(torch.from_numpy(patient.train_outputs(patient.seed, patient.plan.keys.epochs)))
    fitted = torch.from_numpy(product(patient, patient.seed, kernel, epoch, alpha))
    gap = float(np.linalg.norm(alpha + loss.derivative(fitted, targets).numpy() / (len(alpha) * lam)))
    size = float(np.linalg.norm(alpha))
    return gap / size if size > 0 else gap


def _gap_on_test(patient: Patient, importance: str, seed: int, kernel: str, epoch: int) -> float:
    """Max over the seed's test points of |f(x) - sum_i alpha_i K(x_i, x)|, from stored arrays."""
    keys = patient.plan.keys
    alpha = _artifact(patient, importance, seed, kernel, epoch).read("alpha")
    stored = patient.store.artifact("kernel", keys.kernel(seed, kernel, epoch)).read("kernel").astype(np.float64)
    positions = keys.test_positions(seed)
    outputs = patient.train_artifact(seed).read("outputs_test")[positions].astype(np.float64)
    explained = outputs[np.arange(len(positions)), patient.context.target_outputs(seed).cpu().numpy()]
    return float(np.abs(explained - np.einsum("nc,ncm->m", alpha, stored)).max())
