"""What a step must not do if it is to be captured, found by watching its operations once. The same for all implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genrep_dist.core.generators import generator_states
from genrep_dist.training.torch_private import Operation, observe_operations, storage_id


class Rules:
    """Watches the operations of a step. ``reason`` is the first rule that it breaks, in words; None if there is none.

    A replay repeats the same operations on the same memory. So a step may not choose them or their shapes by numbers of its tensors, draw
    random numbers, move tensors between devices, take sparse gradients, or write to memory that ``writable()`` does not list.
    ``outside`` are the tensors that it takes from outside: they must live as long as the graph.
    """

    def __init__(self, writable: Callable[[], Sequence[Tensor]]) -> None:
        self.reason: str | None = None
        self.outside: dict[int, Tensor] = {}
        self._writable = writable
        self._inside: set[int] = set()
        self._written: dict[int, str] = {}

    def watch(self, function: Callable[[], object]) -> None:
        """Run ``function`` once; whatever it raises. Raises NotImplementedError for a torch that shows no operations."""
        before = generator_states()
        observe_operations(function, self._see)
        if generator_states() != before:
            self._break("it draws random numbers")
        allowed = {storage_id(tensor) for tensor in self._writable()}
        for memory, name in self._written.items():
            if memory not in allowed:
                self._break(f"{name} writes to memory that is not the models'")

    def _see(self, operation: Operation) -> None:
        tensors = [*operation.given, *operation.returned]
        if any(tensor.layout != torch.strided for tensor in tensors):
            self._break("gradients of embeddings are sparse")
            return
        if operation.waits:
            self._break(f"{operation.name} waits for numbers")
        if operation.draws:
            self._break(f"{operation.name} draws random numbers")
        if len({tensor.device for tensor in tensors}) > 1:
            self._break(f"{operation.name} takes tensors from several devices")
        self._inside.update(map(storage_id, operation.made))
        for tensor in operation.given:
            if storage_id(tensor) not in self._inside:
                self.outside.setdefault(storage_id(tensor), tensor)
        for tensor in operation.written:
            if storage_id(tensor) not in self._inside:
                self._written.setdefault(storage_id(tensor), operation.name)

    def _break(self, reason: str) -> None:
        self.reason = self.reason or reason
