"""Per-sample gradients of all parameters, factored or dense (Eq. 13): by layer rules, by torch.func, or one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from genrep_dist.core.gradients.autograd import autograd_gradients
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factors import WeightGradients, from_dense
from genrep_dist.core.gradients.functional import torch_func_gradients
from genrep_dist.core.gradients.hooks import hooked_gradients
from genrep_dist.core.gradients.inspection import ModelInspection, inspect_model
from genrep_dist.core.gradients.model import as_real, num_parameters, require_eval, trainable_parameters
from genrep_dist.core.gradients.torch_internals import uncompiled
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import ProblemError


def per_sample_gradients(model: nn.Module, inputs: Tensor, output_index: Tensor | None = None) -> Tensor:
    """Jacobians J (B, C, P), J[b, c] = df_c(x_b)/dtheta, for ``inputs`` (B, ...); the feature map of Eq. 13.

    With ``output_index`` (B,) int64 only the gradient of output ``output_index[b]`` is taken: (B, P). In its place weights (B, C) of the
    outputs take the gradient of their weighted sum, one vector-Jacobian product a sample. Parameters are those with
    requires_grad, in the order of :func:`parameter_vector`, complex ones as two real ones each. Frozen parameters and buffers are
    constants. The dtype is the parameters'.
    Memory: the result, and one pass over a few samples.

    Raises ProblemError for a model in train mode, an empty batch, or an ``output_index`` that does not fit.
    """
    inspection = _checked_inspection(model, inputs, output_index)
    num_outputs = 1 if output_index is not None else inspection.num_outputs
    result = torch.empty(len(inputs), num_outputs, num_parameters(model), dtype=_dtype(model), device=inputs.device)
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
    if output_index.is_floating_point() and output_index.shape == (num_rows, num_outputs):
        return
    if output_index.shape != (num_rows,) or output_index.dtype != torch.int64:
        raise ProblemError(
            "output_index does not fit the batch",
            where="per_sample_gradients",
            expected=f"int64 of shape ({num_rows},), or floating point ({num_rows}, {num_outputs})",
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
        with uncompiled():
            block = _block(model, inspection, inputs[rows], None if output_index is None else output_index[rows])
        yield block


def _block(model: nn.Module, inspection: ModelInspection, inputs: Tensor, output_index: Tensor | None) -> FactoredGradients:
    """The gradients of one batch, computed as the inspection says; one sample at a time where the model does otherwise for these."""
    if len(inputs) < inspection.copies:
        twice = torch.zeros(inspection.copies, dtype=torch.int64, device=inputs.device)
        return _block(model, inspection, inputs[twice], None if output_index is None else output_index[twice]).part(0, 1)
    factors: dict[str, WeightGradients] = {}
    dense: dict[str, Tensor] = {}
    slow = inspection.loop
    try:
        if inspection.hooked or inspection.spread:
            factors, dense = hooked_gradients(model, inspection.hooked, inputs, output_index, inspection.spread)
        if inspection.torch_func:
            dense |= torch_func_gradients(model, inputs, output_index, inspection.torch_func)
    except OUT_OF_MEMORY:
        raise
    except Exception:
        # It branches on its data, or fails for these samples. If one of them fails alone, too, the error says why.
        slow = tuple(name for name, _ in inspection.parameters)
    if slow:
        dense |= autograd_gradients(model, inputs, output_index, slow, inspection.copies)
    rest_parameters, weights = inspection.rest_parameters, inspection.weights
    if len(slow) == len(inspection.parameters):
        factors = {weight.name: from_dense(weight, dense.pop(weight.name)) for weight in weights}
    if rest_parameters:
        rest = torch.cat([dense[name].reshape(*dense[name].shape[:2], -1) for name, _ in rest_parameters], dim=2)
    else:
        rest = inputs.new_empty(len(inputs), 1 if output_index is not None else inspection.num_outputs, 0, dtype=_dtype(model))
    return FactoredGradients(weights, tuple(factors[w.name] for w in weights), rest, rest_parameters, inspection.parameters)


def _dtype(model: nn.Module) -> torch.dtype:
    return as_real(next(iter(trainable_parameters(model).values())).detach()).dtype
