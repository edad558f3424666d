"""Dropout layers are inactive in evaluation mode. The batch size check finds other randomness."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, names_text

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    layers = dropout_layers(context.model)
    text = (
        f"active dropout layers in evaluation mode, of {len(layers)} ({names_text([name for name, _ in layers])}); "
        "tracking importances were recorded in training, with dropout"
    )
    yield compare(
        "dropout",
        sum(module.training for _, module in layers),
        0,
        text if layers else "the model has no dropout layers",
        "make eval() reach every layer",
        seed=context.seed,
    )


def dropout_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the dropout layers with a probability above 0."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _DropoutNd) and module.p > 0]
