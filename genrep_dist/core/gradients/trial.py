"""Trials of the faster ways on two samples against plain autograd, with one sample, one output and one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import output_gradients, short, single_outputs
from genrep_dist.core.gradients.factors import write_dense
from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.hooks import HookedLayer, SpreadParameter, UnusualPassError, hooked_gradients
from genrep_dist.core.tensors import OUT_OF_MEMORY

ROUNDINGS = 100
"""Difference from plain autograd that rounding explains, in roundings of the norm of one output's whole gradient. Gradients that are zero
but for rounding, such as those of the bias of attention keys, differ by that much."""


def wrong_by_rules(
    model: nn.Module,
    layers: Sequence[HookedLayer],
    spread: Sequence[SpreadParameter],
    inputs: Tensor,
    num_outputs: int,
    copies: int,
) -> dict[str, str]:
    """Parameters whose gradients by layer rules, or by copies for each sample, differ from plain autograd's, with the reason."""
    weights = {layer.weight.name: layer.weight for layer in layers if layer.weight is not None}
    names = [*(name for layer in layers for name in layer.parameters), *(one.name for one in spread)]
    wrong: dict[str, str] = {}
    for output in _trial_outputs(num_outputs):
        try:
            factors, dense = hooked_gradients(model, layers, inputs, torch.full((len(inputs),), output, device=inputs.device), spread)
        except UnusualPassError:
            return dict.fromkeys(names, "its layer runs in another way for other samples")
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            return dict.fromkeys(names, f"a batched backward pass fails ({short(error)})")
        for sample in range(len(inputs)):
            truth, total = _truth(model, inputs[sample], output, names, copies)
            for name in names:
                exact = truth[name].flatten()
                if name in weights:
                    found = exact.new_empty(1, 1, exact.numel())
                    write_dense(weights[name], factors[name].part(sample, sample + 1), found)
                else:
                    found = dense[name][sample]
                if _disagree(found.flatten(), exact, total):
                    wrong[name] = "its gradient does not follow from its layer's input and output"
    return wrong


def spread_parameters(model: nn.Module, names: Sequence[str], inputs: Tensor, copies: int) -> list[SpreadParameter]:
    """Those of the parameters ``names`` of which each sample can have a copy, with the copy's shape: the one that gives right gradients.

    Parameters of one name and shape in layers of one type are alike, so that one of them is tried.
    """
    parameters = dict(model.named_parameters())
    truths = [_truth(model, row, 0, names, copies) for row in inputs]
    shapes: dict[tuple[type[nn.Module], str, tuple[int, ...]], tuple[int, ...] | None] = {}
    found: list[SpreadParameter] = []
    for name in names:
        layer, _, local = name.rpartition(".")
        kind = (type(model.get_submodule(layer)), local, tuple(parameters[name].shape))
        if kind not in shapes:
            shapes[kind] = next(
                (shape for shape in _copy_shapes(kind[2]) if _fits(model, SpreadParameter(name, shape), inputs, truths)), None
            )
        if (shape := shapes[kind]) is not None:
            found.append(SpreadParameter(name, shape))
    return found


def _copy_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes of one sample's copy: a leading 1 may stand for the samples, and up to three dimensions are broadcast before the others."""
    if shape[:1] == (1,):
        yield shape[1:]
    for ones in range(4):
        yield (1,) * ones + shape


def _fits(model: nn.Module, spread: SpreadParameter, inputs: Tensor, truths: Sequence[tuple[dict[str, Tensor], Tensor]]) -> bool:
    """Whether the gradients of the samples' copies are right for the first output, and not all zero."""
    try:
        _, dense = hooked_gradients(model, (), inputs, torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device), [spread])
    except OUT_OF_MEMORY:
        raise
    except Exception:
        return False
    exact = [truth[spread.name].flatten() for truth, _ in truths]
    wrong = any(_disagree(row.flatten(), one, total) for row, one, (_, total) in zip(dense[spread.name], exact, truths, strict=True))
    return not wrong and any(bool(one.any()) for one in exact)


def why_not_torch_func(model: nn.Module, names: Sequence[str], inputs: Tensor, num_outputs: int, copies: int) -> str | None:
    """Why torch.func does not give the gradients of the parameters ``names``, or None if it gives those of plain autograd."""
    outputs = (0, num_outputs - 1) if num_outputs > 1 else (0,)
    try:
        found = torch_func_gradients(model, inputs, None, tuple(names), torch.tensor(outputs, device=inputs.device))
    except OUT_OF_MEMORY:
        raise
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
