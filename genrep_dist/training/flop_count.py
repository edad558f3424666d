"""What a network's passes cost, measured on a few rows: operations and memory of a forward pass, memory of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from genrep_dist.core.generators import preserved_generators
from genrep_dist.core.inputs import call_model
from genrep_dist.core.tensors import OUT_OF_MEMORY
from genrep_dist.errors import ProblemError
from genrep_dist.training.torch_private import forward_product_flop, peak_tensor_bytes, without_onednn

MODEL_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError, ProblemError)
"""What a model's own code raises on inputs that it was not written for."""


def forward_flop(model: nn.Module, inputs: Tensor) -> int:
    """Floating-point operations of the matrix products of one row's forward pass; 0 where they cannot be counted.

    ``inputs`` (2, ...) are two rows, as batch normalisation needs in training mode. Operations that a library fuses, such as recurrent
    layers and attention, are counted as if they were not fused.
    """
    was_training = model.training
    try:
        # In evaluation mode torch fuses more.
        with torch.no_grad(), preserved_generators(), sdpa_kernel(SDPBackend.MATH), without_onednn():
            return forward_product_flop(model.train(), inputs) // len(inputs)
    except OUT_OF_MEMORY:
        raise
    except MODEL_ERRORS:
        return 0
    finally:
        model.train(was_training)


def step_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that a training step on ``inputs`` (B, ...) takes beside parameters, approximately; 0 where they cannot be measured.

    Counted twice, for the gradients: what autograd saves for the backward pass, and the unfolded windows of convolutions, which packs
    of stacked layers hold.
    """
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    windows = 0

    def save(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def unfold(module: nn.Module, _inputs: object, result: Tensor) -> None:
        nonlocal windows
        weight = cast("Tensor", module.weight)
        windows += result.numel() // len(weight) * weight[0].numel() * result.element_size()

    hooks = [module.register_forward_hook(unfold) for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d)]
    try:
        with preserved_generators(), saved_tensors_hooks(save, lambda tensor: tensor):
            call_model(model, inputs)
    except OUT_OF_MEMORY:
        raise
    except MODEL_ERRORS:
        return 0
    finally:
        for hook in hooks:
            hook.remove()
    return 2 * (sum(saved.values()) + windows)


def forward_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that each row of ``inputs`` (2, ...) or more takes in a forward pass without gradients, approximately.

    Where they cannot be counted, those that a pass with gradients takes.
    """

    def measure(rows: Tensor) -> int:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = peak_tensor_bytes(lambda: call_model(model, rows))
        return step_bytes(model, rows) if found is None else found

    try:
        return _bytes_of_each_row(measure, inputs)
    except OUT_OF_MEMORY:
        raise
    except MODEL_ERRORS:
        return backward_bytes(model, inputs)


def backward_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that each row of ``inputs`` (2, ...) or more takes in a pass with gradients, approximately; 0 where they cannot be measured."""
    return _bytes_of_each_row(lambda rows: step_bytes(model, rows), inputs)


def _bytes_of_each_row(measure: Callable[[Tensor], int], inputs: Tensor) -> int:
    """What two more rows add, so that copies of parameters do not count."""
    two, four = inputs[:2], torch.cat([inputs[:2], inputs[:2]])
    return max(0, measure(four) - measure(two)) // 2
