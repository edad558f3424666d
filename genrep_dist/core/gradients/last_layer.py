"""Last-layer features: the activations that the model's last nn.Linear receives (Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import copies_needed
from genrep_dist.core.gradients.model import model_outputs, require_eval
from genrep_dist.core.gradients.torch_internals import uncompiled
from genrep_dist.errors import ProblemError


def find_last_layer(model: nn.Module, inputs: Tensor) -> str:
    """The name of the nn.Linear whose output is the model's output for ``inputs`` (B, ...).

    Raises ProblemError with the reason if there is none, or if the model is in train mode.
    """
    linear: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        scripted = isinstance(model, torch.jit.ScriptModule)
        raise _no_last_layer(model, "a scripted model, whose layers cannot be observed" if scripted else "it has no nn.Linear")
    forward = _run(model, inputs, linear)
    matching = [name for name in linear if _mismatch(forward, name) is None]
    if not matching:
        reason = f"none of its {len(linear)} nn.Linear computes it; the last one, {linear[-1]!r}: {_mismatch(forward, linear[-1])}"
        raise _no_last_layer(model, reason)
    return matching[-1]


def last_layer_features(model: nn.Module, inputs: Tensor, layer: str | None = None) -> Tensor:
    """Features Phi (B, L) of ``inputs`` (B, ...), with a constant-1 column last if the layer has a bias: outputs = Phi @ [W, b]^T.

    ``layer`` names the last nn.Linear; without it the layer is found. The result is detached, in the activations' dtype.
    Raises ProblemError if the model is in train mode or the layer's output is not the model's output.
    """
    name = find_last_layer(model, inputs) if layer is None else layer
    module = dict(model.named_modules()).get(name)
    if not isinstance(module, nn.Linear):
        got = "no such layer" if module is None else type(module).__name__
        raise ProblemError("not a last layer", where=f"model layer {name!r}", expected="the name of an nn.Linear", got=got)
    forward = _run(model, inputs, [name])
    reason = _mismatch(forward, name)
    if reason is not None:
        raise _no_last_layer(model, f"layer {name!r}: {reason}")
    call = forward.calls[name][0]
    assert not isinstance(call, str)
    features, _ = call
    return features if module.bias is None else torch.cat([features, torch.ones_like(features[:, :1])], dim=1)


@dataclass
class _LinearForward:
    """The model's outputs (B, C), and for each layer the (input, output) of its calls, or why an output is no tensor (B, L)."""

    outputs: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    calls: dict[str, list[tuple[Tensor, Tensor] | str]] = field(default_factory=dict)


def _run(model: nn.Module, inputs: Tensor, names: Sequence[str]) -> _LinearForward:
    require_eval(model)
    forward = _LinearForward(calls={name: [] for name in names})

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
        # Copies, because a later layer may change the tensors in place. Inside a TransformerEncoder with padding they are nested.
        def record(_module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor], result: Tensor) -> None:
            if not isinstance(result, Tensor) or result.is_nested:
                forward.calls[name].append("its output is not a plain tensor")
            elif result.dim() != 2:
                forward.calls[name].append(f"its output has {result.dim()} dimensions, expected (B, L)")
            else:
                seen = args[0] if args else options["input"]
                forward.calls[name].append((seen.detach()[:count].clone(), result.detach()[:count].clone()))

        return record

    count = len(inputs)
    if count == 1:
        inputs = inputs.repeat(copies_needed(model, inputs[0]), *(1 for _ in inputs.shape[1:]))
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook(name), with_kwargs=True) for name in names]
    try:
        with torch.no_grad(), uncompiled():
            forward.outputs = model_outputs(model, inputs)[:count]
    finally:
        for handle in handles:
            handle.remove()
    return forward


def _mismatch(forward: _LinearForward, name: str) -> str | None:
    """Why this layer's output is not the model's output, or None if it is."""
    calls = forward.calls[name]
    if len(calls) != 1:
        return f"it runs {len(calls)} times in a forward pass"
    if isinstance(calls[0], str):
        return calls[0]
    result = calls[0][1]
    if result.shape != forward.outputs.shape:
        return f"its output has shape {tuple(result.shape)}, the model's {tuple(forward.outputs.shape)}"
    if not torch.equal(result, forward.outputs):
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
