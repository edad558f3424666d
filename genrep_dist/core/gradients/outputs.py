"""What features are features of: a model's outputs, and the parameters that they are differentiated by."""

from __future__ import annotations

from torch import Tensor, nn

from genrep_dist.errors import ProblemError


def model_outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's outputs as (B, C) for ``inputs`` (B, ...); the caller's grad mode and the model's mode stay as they are.

    The model may return (B,) or (B, 1), which both are C = 1, or (B, C); anything else is a ProblemError.
    """
    return as_outputs(model(inputs), inputs.shape[0])


def as_outputs(raw: object, rows: int) -> Tensor:
    """What a model returned for so many rows, as (B, C)."""
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


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name, in the order of the vector of all of them."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}


def require_eval(model: nn.Module) -> None:
    """ProblemError for a model, or a layer of it, in train mode."""
    for name, module in model.named_modules():
        if module.training:
            raise ProblemError(
                "features are taken in eval mode only: dropout and batch statistics would make them random",
                where=f"model layer {name!r} ({type(module).__name__})" if name else f"model {type(model).__name__}",
                expected="model.eval() for every layer",
                got="training=True",
                remedy="call model.eval() first",
            )
