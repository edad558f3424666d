"""The models return raw logits: outputs that are probabilities already would go through the loss's sigmoid or softmax a second time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Colour, Finding, count_text
from genrep_dist.workflow.context import label_loss

Array = npt.NDArray[Any]

BEFORE_RETRAINING = True
FEWEST_ROWS = 10
"""Fewer outputs can lie between 0 and 1 by chance."""
SPREAD = 0.5
"""Single outputs of a sigmoid, once trained, are this far apart; small logits around a number between 0 and 1 are not."""
ROUNDING = 1e-3
"""How far the sum of a row's probabilities may be from 1, for outputs in float32 or fewer bits."""


def check(context: CheckContext) -> Iterator[Finding]:
    """A finding for losses of classification; none for others, whose outputs have no known meaning."""
    loss = label_loss(context.worker.loss)
    if not loss:
        return
    by_seed = {seed: context.train_outputs(seed, context.plan.keys.epochs) for seed in context.seeds}
    models = count_text(len(by_seed), "original model")
    for seed, outputs in by_seed.items():
        colour, what = _looks_like(outputs)
        if colour != "green":
            remedy = (
                f"let model() return raw logits, without a sigmoid or softmax at its end: the loss '{loss}' applies it"
                if colour == "red"
                else "return raw logits, or explain what is meant: target: {kind: log_probability}"
            )
            yield Finding("logits", colour, None, None, f"outputs on the training samples {what}, of {models}", remedy, seed)
            return
    yield Finding("logits", "green", None, None, f"outputs on the training samples are no probabilities, of {models}", "", None)


def _looks_like(outputs: Array) -> tuple[Colour, str]:
    """What outputs (N, C) look like besides logits."""
    if len(outputs) < FEWEST_ROWS:
        return "green", ""
    if outputs.shape[1] == 1:
        is_share = bool((outputs >= 0).all() and (outputs <= 1).all())
        return ("red", "look like probabilities: all are between 0 and 1") if is_share and np.ptp(outputs) >= SPREAD else ("green", "")
    if (outputs >= 0).all() and (np.abs(outputs.sum(axis=1) - 1) <= ROUNDING).all():
        return "red", "look like probabilities: those of each sample add up to 1"
    if (outputs <= 0).all() and (np.abs(np.exp(outputs).sum(axis=1) - 1) <= ROUNDING).all():
        return "amber", "look like log-probabilities: their exponentials add up to 1 for each sample"
    return "green", ""
