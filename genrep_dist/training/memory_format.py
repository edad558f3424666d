"""Layouts in memory that a processor multiplies faster, for the time of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from genrep_dist.training.pooled_convolution import SequenceConvolution


@contextmanager
def sequences_channels_last(model: nn.Module) -> Iterator[None]:
    """Inside, a float32 ``nn.Conv1d`` on a CPU is computed as a convolution of images of one row that lie channels-last in memory.

    Equal to rounding, and less work: torch has no such layout for sequences, though an embedding's output has it and what is done element
    by element keeps it. Outside, all is as before.
    """
    changed = [module for module in model.modules() if type(module) is nn.Conv1d and _is_plain(module)]
    for module in changed:
        module._conv_forward = partial(_as_images, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module._conv_forward


def _is_plain(module: nn.Conv1d) -> bool:
    return (
        module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _as_images(module: nn.Conv1d, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(inputs.device.type):
        # Here, as for a library's convolution: inside the function nothing casts, and on the way back nobody would.
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs, weight, bias = inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if inputs.dim() != 3 or inputs.dtype != weight.dtype:
        plain: Tensor = nn.Conv1d._conv_forward(module, inputs, weight, bias)
        return plain
    images = inputs.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    stride, padding, dilation = (int(value[0]) for value in (module.stride, module.padding, module.dilation))
    factors = (images, weight.unsqueeze(2), bias, stride, padding, dilation, module.groups)
    result: Tensor = SequenceConvolution.apply(*factors)  # type: ignore[no-untyped-call]
    return result.squeeze(2)
