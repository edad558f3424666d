"""The rules of CUDA graphs on a CPU, so that tests without a GPU notice a step that breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from genrep_dist.training.torch_private import Operation, observe_operations


class EmulatedGraph:
    """A :class:`~genrep_dist.training.graphs.base.StepGraph` that records operations and calls them again on the same tensors.

    A replay runs no line of the step. Before it, every intermediate result and every hidden tensor is filled with NaN, and integers with
    numbers that are no index: what a replay does not compute itself is not there.
    """

    device_type: ClassVar[str] = "cpu"
    plain_steps: ClassVar[int] = 1

    def __init__(self, function: Callable[[], Tensor], device: torch.device) -> None:
        del device
        operations: list[Operation] = []
        results: list[Tensor] = []
        observe_operations(lambda: results.append(function()), operations.append)
        self.result = results[0].detach()
        made = [operation.made for operation in operations]
        self._made = [tensor for some in made for tensor in some]
        # Views look at memory that stays, and what "empty" makes has no values.
        self._computed = [
            (operation, {id(tensor) for tensor in some})
            for operation, some in zip(operations, made, strict=True)
            if (some or operation.written) and "empty" not in operation.name
        ]

    @torch.no_grad()
    def replay(self, hidden: Sequence[Tensor]) -> None:
        with _spoiled(hidden):
            for tensor in self._made:
                _spoil(tensor)
            for operation, made in self._computed:
                for tensor, value in zip(operation.returned, operation.again(), strict=True):
                    if id(tensor) in made:
                        tensor.copy_(value)


def _spoil(tensor: Tensor) -> None:
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.is_floating_point() or tensor.is_complex():
        tensor.fill_(torch.nan)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max // 2)


@contextmanager
def _spoiled(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Inside, ``tensors`` hold other values; outside, those of before."""
    before = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        _spoil(tensor)
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
