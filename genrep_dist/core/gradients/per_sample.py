"""Per-sample gradients of all parameters, factored or dense (Eq. 13): by layer rules where they apply, else by torch.func or a loop."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factors import WeightGradients
from genrep_dist.core.gradients.hooks import hooked_gradients
from genrep_dist.core.gradients.inspection import ModelInspection, inspect_model
from genrep_dist.core.gradients.model import as_outputs, model_outputs, require_eval, trainable_parameters
from genrep_dist.errors import ProblemError


def per_sample_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> Tensor:
    """Jacobians J (B, C, P), J[b, c] = df_c(x_b)/dtheta, for ``inputs`` (B, ...); the feature map of Eq. 13.

    With ``output_index`` (B,) int64 only the gradient of output ``output_index[b]`` is taken: (B, P). Parameters are those with
    requires_grad, in the order of :func:`parameter_vector`; frozen parameters and buffers are constants. The dtype is the parameters'.
    Memory: the result, and one pass over a few samples.

    Raises ProblemError for a model in train mode, an empty batch, or an ``output_index`` that does not fit.
    """
    inspection = _checked_inspection(model, inputs, output_index)
    num_outputs = 1 if output_index is not None else inspection.num_outputs
    parameters = list(trainable_parameters(model).values())
    numel = sum(parameter.numel() for parameter in parameters)
    result = torch.empty(len(inputs), num_outputs, numel, dtype=parameters[0].dtype, device=inputs.device)
    done = 0
    for block in _blocks(model, inspection, inputs, output_index):
        block.to_dense(result[done : done + len(block)])
        done += len(block)
    return result if output_index is None else result[:, 0]


def factored_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> FactoredGradients:
    """The Jacobians of :func:`per_sample_gradients` as factors; with ``output_index`` C = 1. The same errors.

    Memory: the factors, and one pass over a few samples.
    """
    return FactoredGradients.cat(list(iter_factored_gradients(model, inputs, output_index)))


def iter_factored_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> Iterator[FactoredGradients]:
    """:func:`factored_gradients` in blocks of :attr:`ModelInspection.batch_size` samples, one after the other. The same errors, at once."""
    return _blocks(model, _checked_inspection(model, inputs, output_index), inputs, output_index)


def _checked_inspection(model: nn.Module, inputs: Tensor, output_index: Tensor | None) -> ModelInspection:
    require_eval(model)
    if inputs.shape[0] == 0:
        raise ProblemError("gradients of an empty batch", where="per_sample_gradients", expected="B of 1 or more", got="0 rows")
    inspection = inspect_model(model, inputs)
    if output_index is not None:
        _check_output_index(output_index, inputs.shape[0], inspection.num_outputs)
    return inspection


def _check_output_index(output_index: Tensor, num_rows: int, num_outputs: int) -> None:
    if output_index.shape != (num_rows,) or output_index.dtype != torch.int64:
        raise ProblemError(
            "output_index does not fit the batch",
            where="per_sample_gradients",
            expected=f"int64 of shape ({num_rows},)",
            got=f"{output_index.dtype} of shape {tuple(output_index.shape)}",
        )
    low, high = int(output_index.min()), int(output_index.max())
    if low < 0 or high >= num_outputs:
        raise ProblemError(
            "output_index is out of range",
            where="per_sample_gradients",
            expected=f"0 to {num_outputs - 1}, as the model has {num_outputs} outputs",
            got=f"{low} to {high}",
        )


def _blocks(model: nn.Module, inspection: ModelInspection, inputs: Tensor, output_index: Tensor | None) -> Iterator[FactoredGradients]:
    step = inspection.batch_size
    for start in range(0, len(inputs), step):
        rows = slice(start, start + step)
        yield _block(model, inspection, inputs[rows], None if output_index is None else output_index[rows])


def _block(model: nn.Module, inspection: ModelInspection, inputs: Tensor, output_index: Tensor | None) -> FactoredGradients:
    factors: dict[str, WeightGradients] = {}
    dense: dict[str, Tensor] = {}
    if inspection.hooked:
        factors, dense = hooked_gradients(model, inspection.hooked, inputs, output_index)
    if inspection.torch_func:
        dense |= torch_func_gradients(model, inputs, output_index, inspection.torch_func)
    if inspection.loop:
        dense |= _loop_gradients(model, inputs, output_index, inspection.loop)
    rest_parameters, weights = inspection.rest_parameters, inspection.weights
    if rest_parameters:
        rest = torch.cat([dense[name].flatten(2) for name, _ in rest_parameters], dim=2)
    else:
        dtype = next(iter(trainable_parameters(model).values())).dtype
        rest = inputs.new_empty(len(inputs), 1 if output_index is not None else inspection.num_outputs, 0, dtype=dtype)
    return FactoredGradients(weights, tuple(factors[w.name] for w in weights), rest, rest_parameters, inspection.parameters)


def torch_func_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Gradients (B, C, *shape) of the parameters ``names`` by torch.func, for layers of any type; C = 1 with an ``output_index``."""
    wanted = {name: parameter.detach() for name, parameter in trainable_parameters(model).items() if name in set(names)}
    constant = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name not in wanted}

    def sample_outputs(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        raw = functional_call(model, {**constant, **parameters}, (sample.unsqueeze(0),))
        return as_outputs(raw, 1)[0]

    # torch.func differentiates in any grad mode. Fixing the mode makes the result's last bits independent of the caller's.
    with torch.no_grad():
        num_outputs = model_outputs(model, inputs[:1]).shape[1]
        if output_index is not None or num_outputs == 1:

            def selected(parameters: dict[str, Tensor], sample: Tensor, index: Tensor) -> Tensor:
                return sample_outputs(parameters, sample).gather(0, index.unsqueeze(0))[0]

            # grad avoids jacrev's extra vmap over a basis of one vector.
            index = output_index if output_index is not None else torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
            gradients = vmap(grad(selected), in_dims=(None, 0, 0))(wanted, inputs, index)
            return {name: gradient.unsqueeze(1) for name, gradient in gradients.items()}
        jacobians: dict[str, Tensor] = vmap(jacrev(sample_outputs), in_dims=(None, 0))(wanted, inputs)
        return jacobians


def _loop_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The same by one backward pass for each sample and output."""
    wanted = {name: parameter for name, parameter in trainable_parameters(model).items() if name in set(names)}
    rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for sample in range(len(inputs)):
        with torch.enable_grad():
            values = model_outputs(model, inputs[sample : sample + 1])[0].unbind()
        for value in values if output_index is None else (values[int(output_index[sample])],):
            gradients = torch.autograd.grad(value, list(wanted.values()), retain_graph=True, allow_unused=True)
            for (name, parameter), gradient in zip(wanted.items(), gradients, strict=True):
                rows[name].append(torch.zeros_like(parameter) if gradient is None else gradient.detach())
    return {name: torch.stack(row).reshape(len(inputs), -1, *wanted[name].shape) for name, row in rows.items()}
