"""Trials of the faster ways on two samples against plain autograd, with one sample, one output and one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import output_gradients, short, single_outputs
from genrep_dist.core.gradients.factors import write_dense
from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.hooks import HookedLayer, UnusualPassError, hooked_gradients

ROUNDINGS = 100
"""Difference from plain autograd that rounding explains, in roundings of the norm of one output's whole gradient. Gradients that are zero
but for rounding, such as those of the bias of attention keys, differ by that much."""


def wrong_by_rules(model: nn.Module, layers: Sequence[HookedLayer], inputs: Tensor, num_outputs: int, copies: int) -> dict[str, str]:
    """Parameters whose gradients by layer rules differ from plain autograd's, with the reason."""
    names = [name for layer in layers for name in layer.parameters]
    wrong: dict[str, str] = {}
    for output in _trial_outputs(num_outputs):
        try:
            factors, dense = hooked_gradients(model, layers, inputs, torch.full((len(inputs),), output, device=inputs.device))
        except UnusualPassError:
            return dict.fromkeys(names, "its layer runs in another way for other samples")
        except Exception as error:
            return dict.fromkeys(names, f"a batched backward pass fails ({short(error)})")
        for sample in range(len(inputs)):
            truth, total = _truth(model, inputs[sample], output, names, copies)
            for layer in layers:
                for name in layer.parameters:
                    exact = truth[name].flatten()
                    if layer.weight is not None and name == layer.weight.name:
                        found = exact.new_empty(1, 1, exact.numel())
                        write_dense(layer.weight, factors[name].part(sample, sample + 1), found)
                    else:
                        found = dense[name][sample]
                    if _disagree(found.flatten(), exact, total):
                        wrong[name] = "its gradient does not follow from its layer's input and output"
    return wrong


def why_not_torch_func(model: nn.Module, names: Sequence[str], inputs: Tensor, num_outputs: int, copies: int) -> str | None:
    """Why torch.func does not give the gradients of the parameters ``names``, or None if it gives those of plain autograd."""
    outputs = (0, num_outputs - 1) if num_outputs > 1 else (0,)
    try:
        found = torch_func_gradients(model, inputs, None, tuple(names), torch.tensor(outputs, device=inputs.device))
    except Exception as error:
        return f"torch.func fails ({short(error)})"
    for sample, row in enumerate(inputs):
        for place, output in enumerate(outputs):
            truth, total = _truth(model, row, output, names, copies)
            if any(_disagree(found[name][sample, place].flatten(), truth[name].flatten(), total) for name in names):
                return "torch.func gives other numbers than a backward pass of one sample"
    return None


def _trial_outputs(num_outputs: int) -> list[int]:
    return sorted({0, num_outputs // 2, num_outputs - 1})


def _truth(model: nn.Module, row: Tensor, output: int, names: Sequence[str], copies: int) -> tuple[dict[str, Tensor], Tensor]:
    """The gradients of one output by plain autograd, and the norm of all of them together."""
    with torch.enable_grad():
        value = single_outputs(model, row, copies)[output]
    gradients = output_gradients(model, value, names)
    return dict(zip(names, gradients, strict=True)), torch.stack([gradient.norm() for gradient in gradients]).norm()


def _disagree(found: Tensor, exact: Tensor, total: Tensor) -> bool:
    """Whether a gradient is wrong by more than rounding. NaN is no disagreement: it is refused with the sample's id where it is used."""
    precision = torch.finfo(found.dtype)
    bound = precision.eps**0.5 * exact.norm() + ROUNDINGS * precision.eps * total
    return bool((found - exact).norm() > bound.clamp(min=precision.tiny))
