"""Per-sample gradients by plain autograd, one sample at a time: slow, and right for every model whose gradients are defined."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.model import as_real, model_outputs, real_shape, selected_output, trainable_parameters
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import GenRepError, ProblemError

MESSAGE = 400
"""Characters of a model's own error that an error shows."""
REPEATED_ROUNDINGS = 1000
"""Roundings by which two passes over the same row may differ, as some sums of a GPU do."""


def single_outputs(model: nn.Module, sample: Tensor, copies: int = 1) -> Tensor:
    """Outputs (C,) of one ``sample`` (...) alone, or beside ``copies`` - 1 copies of itself, for a model that fails on one row.

    Raises ProblemError where the model fails.
    """
    try:
        return model_outputs(model, sample.unsqueeze(0).repeat(copies, *(1 for _ in sample.shape)))[0]
    except GenRepError:
        raise
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        raise ProblemError(
            f"the model fails on {'one row' if copies == 1 else f'{copies} equal rows'}",
            where=f"model {type(model).__name__}",
            expected="outputs of a sample without other samples",
            got=short(error, MESSAGE),
        ) from error


def copies_needed(model: nn.Module, sample: Tensor) -> int:
    """1 where the model runs on one ``sample`` (...) alone; 2 where it only runs on several rows. ProblemError if it does neither."""
    with torch.no_grad():
        try:
            single_outputs(model, sample)
        except ProblemError as error:
            try:
                single_outputs(model, sample, 2)
            except ProblemError:
                raise error from error.__cause__
            return 2
    return 1


def output_gradients(model: nn.Module, value: Tensor, names: Sequence[str]) -> list[Tensor]:
    """The gradients of one output ``value`` () in the parameters ``names``: dense and real, zero where it does not depend on them.

    The graph is kept. Raises ProblemError, with the parameter, where autograd has no derivative.
    """
    parameters = trainable_parameters(model)
    wanted = [parameters[name] for name in names]
    if not value.requires_grad:
        return [torch.zeros_like(as_real(parameter.detach())) for parameter in wanted]
    try:
        found = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        raise _undefined(model, value, names, error) from error
    dense = [torch.zeros_like(p) if g is None else g.detach().to_dense() for g, p in zip(found, wanted, strict=True)]
    return [as_real(gradient) for gradient in dense]


def autograd_gradients(
    model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: Sequence[str], copies: int = 1
) -> dict[str, Tensor]:
    """Gradients (B, C, *shape) of the parameters ``names``, one backward pass for each sample and output; C = 1 with an ``output_index``.

    ``copies``: as in :func:`single_outputs`. Memory: the result, and one sample's graph and gradients.
    """
    parameters = trainable_parameters(model)
    result: dict[str, Tensor] = {}
    for sample, row in enumerate(inputs):
        with torch.enable_grad():
            outputs = single_outputs(model, row, copies)
            if output_index is None:
                chosen = outputs.unbind()
            else:
                chosen = selected_output(outputs.unsqueeze(0), output_index[sample : sample + 1]).unbind()
        for output, value in enumerate(chosen):
            for name, gradient in zip(names, output_gradients(model, value, names), strict=True):
                if name not in result:
                    result[name] = gradient.new_empty(len(inputs), len(chosen), *real_shape(parameters[name]))
                result[name][sample, output] = gradient
    return result


def require_gradients(model: nn.Module, inputs: Tensor, copies: int) -> None:
    """ProblemError if gradients of the ``inputs`` (B, ...) are not defined, or if two passes over the same row differ."""
    reaches = False
    for row in inputs:
        with torch.enable_grad():
            values, again = (single_outputs(model, row, copies) for _ in range(2))
        if differ(values, again, REPEATED_ROUNDINGS * torch.finfo(values.dtype).eps):
            raise _random_outputs(model, row, copies)
        reaches = reaches or values.requires_grad
        output_gradients(model, values[0], tuple(trainable_parameters(model)))
    if not reaches:
        raise ProblemError(
            "the model's outputs have no gradient",
            where=f"model {type(model).__name__}",
            expected="outputs that autograd can trace to the parameters",
            got="outputs without requires_grad",
            remedy="remove torch.no_grad(), .detach(), .item() and NumPy from forward(), or freeze the parameters and train others",
        )


def differ(left: Tensor, right: Tensor, bound: float) -> bool:
    """Whether outputs differ by more than ``bound``, relative to the largest. NaN is no difference."""
    return bool((left.detach() - right.detach()).abs().max() > bound * left.detach().abs().max())


def short(error: Exception, length: int = 110) -> str:
    """The type of an error and the start of its message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A scripted model's last line is the message itself.
    message = lines[-1] if lines and "TorchScript" in lines[0] else " ".join(lines)
    cut = message if len(message) <= length else f"{message[:length].rstrip()} ..."
    return f"{type(error).__name__}: {cut}" if cut else type(error).__name__


def _undefined(model: nn.Module, value: Tensor, names: Iterable[str], error: Exception) -> ProblemError:
    """The error of a backward pass, with the first parameter whose gradient cannot be computed."""
    parameters, culprit = trainable_parameters(model), ""
    for name in names:
        try:
            torch.autograd.grad(value, parameters[name], retain_graph=True, allow_unused=True)
        except Exception:
            culprit = name
            break
    return ProblemError(
        "a gradient is not defined",
        where=f"model {type(model).__name__}" + (f", parameter {culprit!r}" if culprit else ""),
        expected="a forward pass that autograd can differentiate, for one sample",
        got=short(error, MESSAGE),
        remedy="mend the operation, or freeze the parameter",
    )


def _random_outputs(model: nn.Module, row: Tensor, copies: int) -> ProblemError:
    return ProblemError(
        "two passes over the same sample in evaluation mode differ",
        where=_random_layer(model, row, copies),
        expected="outputs that depend on inputs, parameters and buffers alone",
        got="other outputs in the second pass",
        remedy="draw no random numbers in evaluation mode: nn.Dropout, or functional.dropout(..., training=self.training)",
    )


def _random_layer(model: nn.Module, row: Tensor, copies: int) -> str:
    """The innermost layer whose outputs differ for equal inputs, for an error's ``where``."""
    passes: list[dict[str, tuple[list[Tensor], list[Tensor]]]] = []
    names = {module: name for name, module in model.named_modules()}

    def record(module: nn.Module, args: object, result: object) -> None:
        passes[-1].setdefault(names[module], (_tensors(args), _tensors(result)))

    handles = [module.register_forward_hook(record) for module in names]
    try:
        for _ in range(2):
            passes.append({})
            with torch.no_grad():
                single_outputs(model, row, copies)
    finally:
        for handle in handles:
            handle.remove()
    first, second = passes
    for name in sorted(first, key=lambda name: -name.count(".") - bool(name)):
        inputs, outputs = zip(first[name], second.get(name, first[name]), strict=True)
        if _equal(*inputs) and not _equal(*outputs):
            return f"model layer {name!r} ({type(model.get_submodule(name)).__name__})" if name else f"model {type(model).__name__}"
    return f"model {type(model).__name__}"


def _tensors(values: object) -> list[Tensor]:
    listed = values if isinstance(values, tuple | list) else (values,)
    # Nested tensors, as inside a TransformerEncoder with padding, cannot be compared.
    return [value.detach().clone() for value in listed if isinstance(value, Tensor) and not value.is_nested]


def _equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
