"""All layers are in evaluation mode, so that gradients, kernels and scores belong to one fixed function."""

from __future__ import annotations

from collections.abc import Iterator

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, names_text

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    training = [name or type(module).__name__ for name, module in context.model.named_modules() if module.training]
    text = f"layers in training mode after eval(): {names_text(training)}; the model is not a fixed function"
    yield compare(
        "mode",
        len(training),
        0,
        text if training else "all layers are in evaluation mode",
        "make train() and eval() of your layers set `training` of all their submodules",
        seed=context.seed,
    )
