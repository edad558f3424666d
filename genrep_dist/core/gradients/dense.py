"""Features of samples: parameter gradients of the model's outputs (Eq. 13) and penultimate activations (Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from genrep_dist.core.gradients.hooks import blocks, checked_layout
from genrep_dist.core.gradients.outputs import model_outputs as outputs
from genrep_dist.core.gradients.outputs import require_eval, trainable
from genrep_dist.errors import ProblemError

__all__ = [
    "check_model",
    "find_last_layer",
    "last_layer_features",
    "outputs",
    "parameter_vector",
    "per_sample_gradients",
]


def check_model(model: nn.Module) -> None:
    """Refuse a model whose per-sample gradients are undefined; changes nothing.

    Raises ProblemError for uninitialised (lazy) parameters, for a model without trainable floating-point parameters, and for batch
    normalisation without running statistics, where one sample's output depends on the others of its batch even in eval mode.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ProblemError(
                "a parameter has no shape yet",
                where=f"model parameter {name!r}",
                expected="initialised parameters",
                got=type(parameter).__name__,
                remedy="run the model once on a batch inside model()",
            )
    if not trainable(model):
        raise ProblemError(
            "the model has nothing to take gradients of",
            where=f"model {type(model).__name__}",
            expected="at least one floating-point parameter with requires_grad=True",
            got=f"{sum(1 for _ in model.parameters())} parameters, none of them trainable",
        )
    for name, module in model.named_modules():
        # By duck typing, to catch other libraries' layers too. Instance norm without statistics normalises each sample by itself: fine.
        if hasattr(module, "running_mean") and module.running_mean is None and not isinstance(module, _InstanceNorm):
            raise ProblemError(
                "batch normalisation without running statistics mixes the samples of a batch",
                where=f"model layer {name!r} ({type(module).__name__})",
                expected="track_running_stats=True, or a normalisation within each sample",
                got="no running_mean",
                remedy="keep running statistics, or use GroupNorm or LayerNorm",
            )


def parameter_vector(model: nn.Module) -> Tensor:
    """A copy of all trainable parameters as one vector (P,), in the order of ``model.named_parameters()``."""
    check_model(model)
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainable(model).values()])


def per_sample_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> Tensor:
    """Jacobians J (B, C, P), J[b, c] = df_c(x_b)/dtheta, for ``inputs`` (B, ...); the feature map of Eq. 13.

    With ``output_index`` (B,) int64 only the gradient of output ``output_index[b]`` is taken: (B, P).
    Parameters are those with requires_grad, in the order of :func:`parameter_vector`; frozen parameters and buffers are constants.
    The dtype is the parameters'. Memory: the result, and what a pass over a few samples takes.
    :func:`genrep_dist.core.gradients.hooks.feature_rows` gives the same numbers as factors.

    Raises ProblemError for a model in train mode, an empty batch, or an ``output_index`` that does not fit.
    """
    layout = checked_layout(model, inputs, output_index)
    num_outputs = 1 if output_index is not None else layout.num_outputs
    parameters = trainable(model)
    dtype = next(iter(parameters.values())).dtype
    result = torch.empty(len(inputs), num_outputs, sum(p.numel() for p in parameters.values()), dtype=dtype, device=inputs.device)
    done = 0
    for rows in blocks(model, layout, inputs, output_index):
        rows.dense(result[done : done + len(rows)])
        done += len(rows)
    return result if output_index is None else result[:, 0]


def find_last_layer(model: nn.Module, inputs: Tensor | None = None) -> str:
    """The name of the nn.Linear whose output is the model's output, ProblemError with the reason when there is none.

    With ``inputs`` (B, ...) the model is run and the layer recognised by its output. Without, it is the nn.Linear that was registered
    last, a guess that :func:`last_layer_features` verifies.
    """
    linear: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise _no_last_layer(model, "it has no nn.Linear")
    if inputs is None:
        return linear[-1]
    calls = _record(model, inputs, linear)
    matching = [name for name in linear if _mismatch(calls, name) is None]
    if not matching:
        last = linear[-1]
        raise _no_last_layer(model, f"of its {len(linear)} nn.Linear none computes it; the last one, {last!r}: {_mismatch(calls, last)}")
    return matching[-1]


def last_layer_features(model: nn.Module, inputs: Tensor, layer: str | None = None) -> Tensor:
    """Penultimate activations Phi (B, L) of ``inputs`` (B, ...), with a constant-1 column last when the layer has a bias (Eq. 11).

    So outputs = Phi @ [W, b]^T. ``layer`` names the last nn.Linear; without it, it is found. Detached, in the activations' dtype.
    Raises ProblemError when the model is in train mode, or when the layer's output is not the model's output.
    """
    name = find_last_layer(model, inputs) if layer is None else layer
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        got = "no such layer" if module is None else type(module).__name__
        raise ProblemError("that is no last layer", where=f"model layer {name!r}", expected="the name of an nn.Linear", got=got)
    calls = _record(model, inputs, [name])
    reason = _mismatch(calls, name)
    if reason is not None:
        raise _no_last_layer(model, f"layer {name!r}: {reason}")
    features = calls.activations[name]
    return features if module.bias is None else torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


class _Calls:
    """One forward pass: the model's outputs (B, C), and per layer how often it ran, its last input and its last output."""

    def __init__(self) -> None:
        self.model_outputs = torch.empty(0, 0)
        self.counts: dict[str, int] = {}
        self.activations: dict[str, Tensor] = {}
        self.results: dict[str, Tensor] = {}

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(_module: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
            self.counts[name] = self.counts.get(name, 0) + 1
            # Copies: a later layer may work in place.
            self.activations[name] = args[0].detach().clone()
            self.results[name] = result.detach().clone()

        return record


def _record(model: nn.Module, inputs: Tensor, layers: list[str]) -> _Calls:
    require_eval(model)
    calls = _Calls()
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(calls.hook(name)) for name in layers]
    try:
        with torch.no_grad():
            calls.model_outputs = outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _mismatch(calls: _Calls, name: str) -> str | None:
    """Why this layer's output is not the model's output, or None when it is."""
    runs = calls.counts.get(name, 0)
    if runs != 1:
        return f"it runs {runs} times in a forward pass"
    result = calls.results[name]
    if result.dim() != 2:
        return f"it works on tensors of {result.dim()} dimensions, expected (B, L)"
    if result.shape != calls.model_outputs.shape:
        return f"its output has shape {tuple(result.shape)}, the model's {tuple(calls.model_outputs.shape)}"
    if not torch.equal(result, calls.model_outputs):
        return "the model changes its output further, for example by an activation"
    return None


def _no_last_layer(model: nn.Module, reason: str) -> ProblemError:
    return ProblemError(
        "the model's output is not the output of a linear layer",
        where=f"model {type(model).__name__}",
        expected="a last nn.Linear whose output is returned unchanged",
        got=reason,
        remedy="return raw logits from the last nn.Linear, or choose an 'ntk' kernel instead of 'last-layer'",
    )
