"""Mode and normalisation: whether the loaded model's output is a function of the sample alone."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from genrep_dist.diagnostics.finding import Finding, green, judge


def mode(model: nn.Module, seed: int) -> Finding:
    """Every layer is in evaluation mode: gradients, kernels and scores are those of one fixed function."""
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    return judge(
        "mode",
        len(training),
        0,
        f"layers in training mode after eval(): {_some(training)}; f is then no fixed function"
        if training
        else "every layer is in evaluation mode",
        "let train() and eval() of your layers set `training` of all that they hold",
        seed=seed,
    )


def normalisation(model: nn.Module, seed: int) -> Finding:
    """Batch normalisation: refused without running statistics, noted with frozen ones. Counts the layers concerned."""
    mixing, frozen = normalising_layers(model)
    if mixing:
        return judge(
            "normalisation",
            len(mixing),
            0,
            f"layers that normalise by the batch at hand even in evaluation: {_some(mixing)}; "
            "a sample's output and gradient then depend on its neighbours",
            "set track_running_stats=True and run again, or use GroupNorm or LayerNorm",
            seed=seed,
        )
    if frozen:
        return judge(
            "normalisation",
            len(frozen),
            0,
            f"layers with frozen running statistics: {_some(frozen)}; gradients take these statistics as constants, while every "
            "training sample took part in them, and retraining without it changes them",
            "nothing, if that is understood; GroupNorm or LayerNorm have no such second path",
            seed=seed,
            worse="amber",
        )
    return green("normalisation", "no layer normalises across samples", number=0, bound=0, seed=seed)


def dropout(model: nn.Module, seed: int) -> Finding:
    """Dropout layers are off in evaluation. (What is random otherwise shows in the batch-size check.)"""
    layers = dropout_layers(model)
    active = [name for name, module in layers if module.training]
    names = _some([name for name, _ in layers])
    return judge(
        "dropout",
        len(active),
        0,
        f"dropout layers active in evaluation, of {len(layers)} ({names}); "
        "importances by tracking were gathered with dropout on, as training ran"
        if layers
        else "the model has no dropout layers",
        "let eval() reach every layer",
        seed=seed,
    )


def normalising_layers(model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of layers that normalise by the batch at hand in evaluation, and of those that use frozen running statistics.

    By duck typing, to catch other libraries' layers too. Instance norm without statistics normalises each sample by itself.
    """
    mixing, frozen = [], []
    for name, module in model.named_modules():
        if not hasattr(module, "running_mean"):
            continue
        if module.running_mean is not None:
            frozen.append(name)
        elif not isinstance(module, _InstanceNorm):
            mixing.append(name)
    return mixing, frozen


def dropout_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Dropout layers that drop anything, by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _DropoutNd) and module.p > 0]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
