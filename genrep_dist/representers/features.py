"""Features of samples: parameter gradients of the model's outputs (Eq. 13) and penultimate activations (Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from genrep_dist.errors import ProblemError


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's outputs as (B, C) for ``inputs`` (B, ...); the caller's grad mode and the model's mode stay as they are.

    The model may return (B,) or (B, 1), which both are C = 1, or (B, C); anything else is a ProblemError.
    """
    return _as_outputs(model(inputs), inputs.shape[0])


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
    if not _trainable(model):
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
    return torch.cat([parameter.detach().reshape(-1) for parameter in _trainable(model).values()])


def per_sample_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> Tensor:
    """Jacobians J (B, C, P), J[b, c] = df_c(x_b)/dtheta, for ``inputs`` (B, ...); the feature map of Eq. 13.

    With ``output_index`` (B,) int64 only the gradient of output ``output_index[b]`` is taken: (B, P).
    Parameters are those with requires_grad, in the order of :func:`parameter_vector`; frozen parameters and buffers are constants.
    The dtype is the parameters'. Peak memory is a few times the result, plus B times the activations of one sample.

    Raises ProblemError for a model in train mode, an empty batch, or an ``output_index`` that does not fit.
    """
    _require_eval(model)
    if inputs.shape[0] == 0:
        raise ProblemError("gradients of an empty batch", where="per_sample_gradients", expected="B of 1 or more", got="0 rows")
    trainable = {name: parameter.detach() for name, parameter in _trainable(model).items()}
    constant = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name not in trainable}

    def sample_outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        raw = functional_call(model, {**constant, **parameters}, (sample.unsqueeze(0),))
        return _as_outputs(raw, 1)[0]

    # The functional transforms differentiate inside whatever the mode outside; fixing it keeps the result's bits from depending on it.
    with torch.no_grad():
        num_outputs = outputs(model, inputs[:1]).shape[1]
        if output_index is not None:
            _check_output_index(output_index, inputs.shape[0], num_outputs)

            def selected(parameters: dict[str, Tensor], sample: Tensor, index: Tensor) -> Tensor:
                return sample_outputs(parameters, sample).gather(0, index.unsqueeze(0))[0]

            gradients = vmap(grad(selected), in_dims=(None, 0, 0))(trainable, inputs, output_index)
            return _flatten(gradients, trainable, 1)
        if num_outputs == 1:
            # jacrev would add a level of mapping over a basis of one vector.
            gradients = vmap(grad(lambda parameters, sample: sample_outputs(parameters, sample)[0]), in_dims=(None, 0))(trainable, inputs)
            return _flatten(gradients, trainable, 1).unsqueeze(1)
        return _flatten(vmap(jacrev(sample_outputs), in_dims=(None, 0))(trainable, inputs), trainable, 2)


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
    _require_eval(model)
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


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}


def _require_eval(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training:
            raise ProblemError(
                "features are taken in eval mode only: dropout and batch statistics would make them random",
                where=f"model layer {name!r} ({type(module).__name__})" if name else f"model {type(model).__name__}",
                expected="model.eval() for every layer",
                got="training=True",
                remedy="call model.eval() first",
            )


def _as_outputs(raw: object, rows: int) -> Tensor:
    if isinstance(raw, Tensor):
        if raw.shape == (rows,):
            return raw.unsqueeze(1)
        if raw.dim() == 2 and raw.shape[0] == rows and raw.shape[1] >= 1:
            return raw
    got = f"shape {tuple(raw.shape)}" if isinstance(raw, Tensor) else type(raw).__name__
    raise ProblemError(
        "the model's output has the wrong form",
        where="model(inputs)",
        expected=f"a tensor of shape ({rows},) or ({rows}, C) for {rows} inputs",
        got=got,
        remedy="name the dimension when squeezing: squeeze() also drops a batch of one, squeeze(1) does not",
    )


def _check_output_index(output_index: Tensor, rows: int, num_outputs: int) -> None:
    if output_index.shape != (rows,) or output_index.dtype != torch.int64:
        raise ProblemError(
            "output_index does not fit the batch",
            where="per_sample_gradients",
            expected=f"int64 of shape ({rows},)",
            got=f"{output_index.dtype} of shape {tuple(output_index.shape)}",
        )
    low, high = int(output_index.min()), int(output_index.max())
    if low < 0 or high >= num_outputs:
        raise ProblemError(
            "output_index names an output that the model has not",
            where="per_sample_gradients",
            expected=f"0 to {num_outputs - 1}",
            got=f"{low} to {high}",
        )


def _flatten(gradients: dict[str, Tensor], order: dict[str, Tensor], leading: int) -> Tensor:
    """Gradients by name, (B, ..., *shape of the parameter), as one tensor (B, ..., P); ``leading`` dimensions are kept."""
    parts = [gradients[name] for name in order]
    return torch.cat([part.reshape(*part.shape[:leading], -1) for part in parts], dim=-1)
