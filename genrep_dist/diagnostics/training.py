"""How the models were trained: the optimiser against the methods, whether anything was learned, how many seeds there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrep_dist.diagnostics.finding import Finding, badness, counted, green, judge
from genrep_dist.diagnostics.fixture import Patient

Array = npt.NDArray[Any]

FEWEST_SEEDS = 10
LOSS_SHARE = 0.9
"""Where there is no accuracy, training must have taken a tenth of the initial loss away to count as learning."""


def optimiser(patient: Patient) -> list[Finding]:
    """The optimizer against methods whose derivation assumes plain SGD. The number counts what breaks the identities."""
    reasons, experiment = patient.plan.shape.identity_gap_reasons, patient.plan.experiment
    assuming = [
        name
        for name, method in zip(experiment.methods, experiment.parsed_methods, strict=True)
        if method.importance == "tracking" or method.checkpoint == "all"
    ]
    if not reasons:
        return [green("optimiser", "plain SGD, as the tracking and TracIn identities require", number=0.0, bound=0.0)]
    if not assuming:
        return [green("optimiser", f"{'; '.join(reasons)}. No method of this run assumes plain SGD", number=len(reasons))]
    text = (
        f"{'; '.join(reasons)}. f_T - f_0 = sum_i alpha_i K(x_i, .) does not hold, not even for linear models, for "
        f"{', '.join(assuming)}; bound: plain SGD has no such reason"
    )
    remedy = "train with plain SGD where the identity matters; deletion scores are valid either way"
    return [judge("optimiser", len(reasons), 0.0, text, remedy, worse="amber")]


def learning(patient: Patient) -> list[Finding]:
    """Test accuracy of the original models against the majority class; without classes, the training loss against the initial one."""
    if patient.context.loss.name not in ("logistic", "softmax"):
        return [_loss_fell(patient)]
    targets = patient.context.test.targets.cpu().numpy()
    accuracies = {seed: _accuracy(patient.train_artifact(seed).read("outputs_test"), targets) for seed in patient.seeds}
    rate = float(np.bincount(_classes(targets)).max() / len(targets))
    margin = max(2 * math.sqrt(rate * (1 - rate) / len(targets)), 1 / len(targets))
    seed = min(accuracies, key=lambda seed: accuracies[seed])
    below = sum(1 for accuracy in accuracies.values() if not accuracy > rate + margin)
    models = counted(len(patient.seeds), "original model")
    finding = judge(
        "learning",
        accuracies[seed],
        rate + margin,
        f"lowest test accuracy of {models}, {below} of them below the bound: the majority class's share "
        f"{rate:.3f} and two standard errors of it on {len(targets):,} test samples; an accuracy below is no better than guessing",
        "train longer or better, or take more test samples: attributions of a model that has learned nothing mean nothing",
        seed=seed,
        worse="amber",
        at_least=True,
    )
    return [finding]


def power(patient: Patient) -> list[Finding]:
    """Whether there are enough networks for the intervals, which resample them."""
    count = len(patient.seeds)
    text = "one seed: no interval, nothing is known about other networks" if count == 1 else "seeds"
    finding = judge(
        "power",
        count,
        FEWEST_SEEDS,
        f"{text}; bound: from {FEWEST_SEEDS} seeds on the 95 % interval was measured to hold the truth in 94 to 95 %, with 5 in 91 %, "
        "and up to 4 it is their range",
        f"run at least {FEWEST_SEEDS} seeds before reading intervals: finished seeds are not computed again",
        worse="amber",
        at_least=True,
    )
    return [finding]


def _accuracy(outputs: Array, targets: Array) -> float:
    predicted = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    return float((predicted == _classes(targets)).mean())


def _classes(targets: Array) -> Array:
    """Class numbers of targets in any form that the losses take: soft ones count for their largest part."""
    soft = targets.ndim == 2 and targets.shape[1] > 1
    classes: Array = targets.argmax(axis=1) if soft else targets.reshape(-1)
    return (classes > 0.5 if classes.dtype.kind == "f" else classes).astype(np.int64)


def _loss_fell(patient: Patient) -> Finding:
    loss, targets = patient.context.loss, patient.context.train.targets.cpu()

    def mean(seed: int, epoch: int) -> float:
        return float(loss.value(torch.from_numpy(patient.train_outputs(seed, epoch)), targets).mean())

    shares = {}
    for seed in patient.seeds:
        initial = mean(seed, 0)
        shares[seed] = mean(seed, patient.plan.keys.epochs) / initial if initial > 0 else 1.0
    worst = max(shares, key=lambda seed: badness(shares[seed]))
    return judge(
        "learning",
        shares[worst],
        LOSS_SHARE,
        f"largest final training loss as a share of the initial one, of {counted(len(shares), 'original model')} (the loss "
        f"'{loss.name}' is no classification's); bound: training must have taken a tenth of it away",
        "train longer or better: attributions of a model that has learned nothing mean nothing",
        seed=worst,
        worse="amber",
    )
