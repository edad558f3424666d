"""The original models have learned: test accuracy above the majority class; for other losses, a fall of the training loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key

Array = npt.NDArray[Any]

BEFORE_RETRAINING = True

LOSS_SHARE = 0.9
"""Without an accuracy, training must reduce the initial loss by a tenth."""


def check(context: CheckContext) -> Iterator[Finding]:
    yield _accuracy_finding(context) if context.worker.loss.name in ("logistic", "softmax") else _loss_finding(context)


def _accuracy_finding(context: CheckContext) -> Finding:
    targets = context.worker.test.targets.cpu().numpy()
    accuracies = {seed: _accuracy(context.train_artifact(seed).read("outputs_test"), targets) for seed in context.seeds}
    rate = float(np.bincount(_classes(targets)).max() / len(targets))
    # With few test samples two standard errors may exceed 1: all of them right is then enough.
    bound = min(rate + max(2 * math.sqrt(rate * (1 - rate) / len(targets)), 1 / len(targets)), 1 - 0.5 / len(targets))
    seed = min(accuracies, key=lambda seed: accuracies[seed])
    below = sum(1 for accuracy in accuracies.values() if not accuracy > bound)
    return compare(
        "learning",
        accuracies[seed],
        bound,
        f"lowest test accuracy of {count_text(len(context.seeds), 'original model')}, {below} of them below the bound: the share "
        f"{rate:.3f} of the majority class and two standard errors of it on {len(targets):,} test samples; an accuracy below is no "
        "better than guessing",
        "train longer or better, or use more test samples: attributions of a model that has learned nothing mean nothing",
        seed=seed,
        otherwise="amber",
        at_least=True,
    )


def _loss_finding(context: CheckContext) -> Finding:
    loss, targets = context.worker.loss, context.worker.train.targets.cpu()

    def mean(seed: int, epoch: int) -> float:
        return float(loss.value(torch.from_numpy(context.train_outputs(seed, epoch)), targets).mean())

    shares = {}
    for seed in context.seeds:
        initial = mean(seed, 0)
        shares[seed] = mean(seed, context.plan.keys.epochs) / initial if initial > 0 else 1.0
    worst = largest_key(shares)
    return compare(
        "learning",
        shares[worst],
        LOSS_SHARE,
        f"largest final training loss as a share of the initial one, of {count_text(len(shares), 'original model')} (the loss "
        f"'{loss.name}' is not one of classification); bound: training reduces it by a tenth",
        "train longer or better: attributions of a model that has learned nothing mean nothing",
        seed=worst,
        otherwise="amber",
    )


def _accuracy(outputs: Array, targets: Array) -> float:
    predicted = outputs.argmax(axis=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    return float((predicted == _classes(targets)).mean())


def _classes(targets: Array) -> Array:
    """Class numbers (N,) of targets (N,) or (N, C) in any form that the losses accept: the largest part of soft ones."""
    soft = targets.ndim == 2 and targets.shape[1] > 1
    classes: Array = targets.argmax(axis=1) if soft else targets.reshape(-1)
    return (classes > 0.5 if classes.dtype.kind == "f" else classes).astype(np.int64)
