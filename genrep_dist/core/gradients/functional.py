"""Per-sample gradients by torch.func: one vectorised pass for layers of any type that torch can vectorise."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from genrep_dist.core.gradients.model import as_outputs, as_real, model_outputs, selected_output, trainable_parameters
from genrep_dist.core.gradients.torch_internals import without_fused_attention
from genrep_dist.core.inputs import InputForm, call_arguments, form_of, input_leaves


class FunctionalModel(Protocol):
    """``model(tensors, leaves, form)``: its output for inputs of :func:`~genrep_dist.core.inputs.input_leaves`."""

    def __call__(self, tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], form: InputForm | None) -> object: ...


def functional_model(model: nn.Module) -> FunctionalModel:
    """The model as a function of its parameters and buffers, by the names of ``model.named_parameters()``, and of its inputs.

    torch's ``functional_call`` alone leaves a module that stands in two places without its parameters.
    """
    first: dict[int, str] = {}
    places: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        own = (module.named_parameters(name, False, remove_duplicate=False), module.named_buffers(name, False, remove_duplicate=False))
        places += [(full, first.setdefault(id(tensor), full)) for tensors in own for full, tensor in tensors]

    def call(tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], form: InputForm | None) -> object:
        given = {full: tensors[name] for full, name in places if name in tensors}
        args, kwargs = call_arguments(leaves, form)
        return functional_call(model, given, args, kwargs, tie_weights=False)

    return call


def torch_func_gradients(
    model: nn.Module, inputs: Tensor, output_index: Tensor | None, names: tuple[str, ...], outputs: Tensor | None = None
) -> dict[str, Tensor]:
    """Gradients (B, C, *shape) of the parameters ``names`` by torch.func, for layers of any type; C = 1 with an ``output_index``.

    ``outputs`` (K,) int64: of these outputs alone, C = K, in the way in which all are computed.
    """
    wanted = {name: parameter.detach() for name, parameter in trainable_parameters(model).items() if name in set(names)}
    constant = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name not in wanted}

    call, form, leaves = functional_model(model), form_of(inputs), input_leaves(inputs)

    def sample_outputs(parameters: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
        found = as_outputs(call({**constant, **parameters}, [leaf.unsqueeze(0) for leaf in sample], form), 1)[0]
        return found if outputs is None else found[outputs]

    # torch.func differentiates in any grad mode. Fixing the mode makes the result's last bits independent of the caller's.
    with torch.no_grad(), without_fused_attention(), warnings.catch_warnings():
        # Operations without a batching rule are computed sample by sample.
        warnings.filterwarnings("ignore", "There is a performance drop")
        num_outputs = model_outputs(model, inputs[:1]).shape[1]
        if output_index is not None or num_outputs == 1:

            def selected(parameters: dict[str, Tensor], sample: list[Tensor], index: Tensor) -> Tensor:
                return selected_output(sample_outputs(parameters, sample).unsqueeze(0), index.unsqueeze(0))[0]

            # grad avoids jacrev's extra vmap over a basis of one vector.
            index = output_index if output_index is not None else torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
            gradients = vmap(grad(selected), in_dims=(None, 0, 0))(wanted, leaves, index)
            return {name: as_real(gradient.unsqueeze(1)) for name, gradient in gradients.items()}
        jacobians: dict[str, Tensor] = vmap(jacrev(sample_outputs), in_dims=(None, 0))(wanted, leaves)
        return {name: as_real(jacobian) for name, jacobian in jacobians.items()}
