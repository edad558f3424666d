"""Training has not diverged: logits are of a size that a classifier can have, and the training loss has not exploded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from genrep_dist.core.targets import LogitTarget
from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, count_text, largest_key
from genrep_dist.workflow.context import label_loss

BEFORE_RETRAINING = True
LARGE_LOGIT = 100.0
"""Beyond it float32 has no number for exp(-f): the loss of a sample that is classified rightly has a derivative of exactly zero."""
ABSURD_LOGIT = 1000.0
"""A class that is e^1000 times as likely as another: only steps that are far too large lead there."""
LOSS_GROWTH = 100.0
"""Final training loss in units of the initial one, or of that of a model that answers 0, whichever is larger."""

_REMEDY = "lower recipe.learning_rate, or scale the inputs to about one: explanations of a model that has diverged mean nothing"


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding about the training loss. For losses of classification also about the logits, of a finished run those after retraining."""
    sizes: dict[int, float] = {}
    growths: dict[int, float] = {}
    for seed in context.seeds:
        final = context.train_outputs(seed, context.plan.keys.epochs)
        sizes[seed], growths[seed] = _largest_logit(final), _growth(context, seed, final)
    models = count_text(len(sizes), "original model")
    if label_loss(context.worker.loss):
        seed = largest_key(sizes)
        is_absurd = not sizes[seed] <= ABSURD_LOGIT
        reason = "no training that converges gives a class odds of e^1000" if is_absurd else "beyond it derivatives of the loss are zero"
        yield compare(
            "divergence",
            sizes[seed],
            ABSURD_LOGIT if is_absurd else LARGE_LOGIT,
            f"largest logit on the training samples, or difference of two logits of a sample, of {models}; bound: {reason}",
            _REMEDY,
            seed=seed,
            otherwise="red" if is_absurd else "amber",
        )
        if not context.before_retraining and isinstance(context.plan.experiment.make_target(), LogitTarget):
            yield from _after_retraining(context)
    seed = largest_key(growths)
    yield compare(
        "divergence",
        growths[seed],
        LOSS_GROWTH,
        f"final training loss in units of the initial one, or of that of a model that answers 0 if this is larger, largest of {models}; "
        "bound: far more than training from any start adds",
        _REMEDY,
        seed=seed,
    )


def _after_retraining(context: CheckContext) -> Iterator[Finding]:
    """About the explained logits of the published deletion table."""
    sizes = context.run.deletion().select("seed", pl.col("score_retrained").abs()).sort("score_retrained")
    for seed, size in sizes.last().collect().iter_rows():
        yield compare(
            "divergence",
            size,
            ABSURD_LOGIT,
            "largest explained logit of the retrained models; bound: no training that converges gives a class odds of e^1000",
            _REMEDY,
            seed=seed,
        )


def _largest_logit(outputs: npt.NDArray[Any]) -> float:
    """Of outputs (N, C). A softmax does not depend on the mean of a sample's logits."""
    return float((np.abs(outputs) if outputs.shape[1] == 1 else np.ptp(outputs, axis=1)).max())


def _growth(context: CheckContext, seed: int, final: npt.NDArray[Any]) -> float:
    """The growth of the training loss; 0 where the loss has no scale, as one that can be negative."""
    targets = context.worker.train.targets.cpu()

    def mean(outputs: npt.NDArray[Any]) -> float:
        return float(context.worker.loss.value(torch.from_numpy(outputs), targets).double().mean())

    scales = [mean(context.train_outputs(seed, 0)), mean(np.zeros_like(final))]
    scale = max((scale for scale in scales if math.isfinite(scale)), default=0.0)
    return mean(final) / scale if scale > 0 else 0.0
