"""The private torch attributes that the package's mathematics reads, each with a fallback for a torch that no longer has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HOOK_ATTRIBUTES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
VERSION_ATTRIBUTE = "_version"


def is_modified(module: nn.Module) -> bool:
    """Whether a module has hooks of its own or a replaced ``forward``. True where torch does not say: such a layer takes the slow path."""
    return "forward" in vars(module) or any(getattr(module, name, True) for name in HOOK_ATTRIBUTES)


class Snapshot:
    """A layer's input as the layer saw it: the tensor and its version counter, or a copy where torch does not count versions."""

    def __init__(self, tensor: Tensor) -> None:
        self._version: Any = getattr(tensor, VERSION_ATTRIBUTE, None)
        self.tensor = tensor.detach() if self._version is not None else tensor.detach().clone()

    @property
    def is_stale(self) -> bool:
        """Whether the tensor was changed in place since. A detached tensor shares the counter of its source."""
        return self._version is not None and getattr(self.tensor, VERSION_ATTRIBUTE) != self._version


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, what torch.compile has compiled runs as it is written: compiled code has no second derivatives, and hooks recompile it."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Inside, attention is computed from plain operations: torch.func does not vectorise fused ones and nested tensors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
