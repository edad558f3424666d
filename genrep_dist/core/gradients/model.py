"""A model's outputs as (B, C), its trainable parameters, and the checks that make its per-sample gradients well defined."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genrep_dist.core.gradients.output_form import describe_output, model_output, output_remedy
from genrep_dist.core.inputs import call_model
from genrep_dist.core.tensors import real_outputs
from genrep_dist.errors import ProblemError

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAZY_INSTANCE_NORMS = (nn.LazyInstanceNorm1d, nn.LazyInstanceNorm2d, nn.LazyInstanceNorm3d)


def model_outputs(model: nn.Module, inputs: Tensor, num_rows: int | None = None) -> Tensor:
    """The model's outputs (B, C) for ``inputs`` (B, ...). Grad mode and the model's mode are left as they are.

    The model may return (B, C) or (B,), which becomes (B, 1); a tuple whose first entry this is; or an object or dictionary with
    ``logits``. Of one row it may also return () or (C,), as models that squeeze do. Raises ProblemError for anything else.

    ``num_rows``: how many rows it returns, if not one for each of ``inputs``: those of several models in one.
    """
    return as_outputs(call_model(model, inputs), inputs.shape[0] if num_rows is None else num_rows, type(model).__name__)


def as_outputs(returned: object, num_rows: int, model_name: str = "YourModel") -> Tensor:
    """What a model returned for ``num_rows`` inputs, as (B, C). Raises ProblemError unless that is a real tensor (B,) or (B, C).

    The dtype is that of :func:`~genrep_dist.core.tensors.real_outputs`.
    """
    raw = model_output(returned)
    if isinstance(raw, Tensor):
        if raw.shape == (num_rows,):
            return real_outputs(raw.unsqueeze(1))
        if raw.dim() == 2 and raw.shape[0] == num_rows and raw.shape[1] >= 1:
            return real_outputs(raw)
        if num_rows == 1 and raw.dim() < 2 and raw.numel():
            return real_outputs(raw.reshape(1, -1))
    raise ProblemError(
        "the model's output has the wrong form",
        where="model(inputs)",
        expected=f"a tensor of shape ({num_rows},) or ({num_rows}, C) for {num_rows} inputs",
        got=describe_output(returned),
        remedy=output_remedy(returned, num_rows, model_name),
    )


def selected_output(outputs: Tensor, selection: Tensor) -> Tensor:
    """(B,) of ``outputs`` (B, C): output ``selection[b]`` for integers (B,), their sum weighted by ``selection[b]`` for numbers (B, C)."""
    if selection.is_floating_point():
        return (outputs * selection.to(outputs)).sum(1)
    return outputs.gather(1, selection.unsqueeze(1)).squeeze(1)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with requires_grad, by name, in the order of ``model.named_parameters()``. All others are constants."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as real numbers (..., 2), its real and imaginary parts; any other tensor as it is.

    A complex parameter counts as two real ones. Of its gradient, as torch.autograd computes it, the parts are the derivatives in the real
    and in the imaginary part, so that an inner product is the real part of the Hermitian product.
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of :func:`as_real`."""
    return (*parameter.shape, 2) if parameter.is_complex() else tuple(parameter.shape)


def num_parameters(model: nn.Module) -> int:
    """P, the number of trainable real parameters."""
    return sum(math.prod(real_shape(parameter)) for parameter in trainable_parameters(model).values())


def parameter_vector(model: nn.Module) -> Tensor:
    """A copy of all trainable parameters as one vector (P,), in the order of ``model.named_parameters()``."""
    check_model(model)
    return torch.cat([as_real(parameter.detach()).reshape(-1) for parameter in trainable_parameters(model).values()])


def require_eval(model: nn.Module) -> None:
    """Raise ProblemError if the model or one of its layers is in train mode."""
    for name, module in model.named_modules():
        if module.training:
            raise ProblemError(
                "gradients need eval mode: dropout and batch statistics would make them random",
                where=f"model layer {name!r} ({type(module).__name__})" if name else f"model {type(model).__name__}",
                expected="model.eval() for every layer",
                got="training=True",
                remedy="call model.eval() first",
            )


def require_initialized(model: nn.Module) -> None:
    """Raise ProblemError for a lazy parameter without a shape."""
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ProblemError(
                "a parameter has no shape yet",
                where=f"model parameter {name!r}",
                expected="initialised parameters",
                got=type(parameter).__name__,
                remedy="run the model once on a batch inside model()",
            )


def check_model(model: nn.Module) -> None:
    """Raise ProblemError for a model whose per-sample gradients are undefined. The model is not changed.

    Refused are lazy parameters without a shape, models without trainable parameters, and batch normalisation without
    running statistics, where a sample's output depends on the other samples of its batch even in eval mode.
    """
    require_initialized(model)
    if not trainable_parameters(model):
        raise ProblemError(
            "the model has no trainable parameters",
            where=f"model {type(model).__name__}",
            expected="at least one parameter with requires_grad=True",
            got=f"{sum(1 for _ in model.parameters())} parameters, none of them trainable",
        )
    for name, module in model.named_modules():
        # Duck typing also covers layers of other libraries. Instance norm without statistics normalises each sample by itself.
        without_statistics = hasattr(module, "running_mean") and module.running_mean is None
        if without_statistics and not isinstance(module, _INSTANCE_NORMS + _LAZY_INSTANCE_NORMS):
            raise ProblemError(
                "batch normalisation without running statistics mixes the samples of a batch",
                where=f"model layer {name!r} ({type(module).__name__})",
                expected="track_running_stats=True, or a normalisation within each sample",
                got="no running_mean",
                remedy="keep running statistics, or use GroupNorm or LayerNorm",
            )
