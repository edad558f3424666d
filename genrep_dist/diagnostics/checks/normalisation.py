"""Batch normalisation: red without running statistics, amber with frozen ones. The number counts the layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from genrep_dist.diagnostics.context import CheckContext
from genrep_dist.diagnostics.finding import Finding, compare, green, names_text

BEFORE_RETRAINING = True


def check(context: CheckContext) -> Iterator[Finding]:
    batch_statistics, frozen = normalising_layers(context.model)
    if batch_statistics:
        yield compare(
            "normalisation",
            len(batch_statistics),
            0,
            f"layers that normalise by the statistics of the batch in evaluation mode: {names_text(batch_statistics)}; "
            "the output and gradient of a sample depend on the other samples of its batch",
            "set track_running_stats=True and run again, or use GroupNorm or LayerNorm",
            seed=context.seed,
        )
    elif frozen:
        yield compare(
            "normalisation",
            len(frozen),
            0,
            f"layers with frozen running statistics: {names_text(frozen)}; gradients treat these statistics as constants, although "
            "they depend on all training samples and change when one is removed",
            "no action is needed if this is acceptable; GroupNorm and LayerNorm do not have this effect",
            seed=context.seed,
            otherwise="amber",
        )
    else:
        yield green("normalisation", "no layer normalises across samples", number=0, bound=0, seed=context.seed)


def normalising_layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of layers that use batch statistics in evaluation mode, and of layers that use frozen running statistics.

    Layers are recognised by ``running_mean``, which includes those of other libraries. Instance norm without running statistics
    normalises each sample separately.
    """
    batch_statistics, frozen = [], []
    for name, module in model.named_modules():
        if not hasattr(module, "running_mean"):
            continue
        if module.running_mean is not None:
            frozen.append(name)
        elif not isinstance(module, _InstanceNorm):
            batch_statistics.append(name)
    return batch_statistics, frozen
