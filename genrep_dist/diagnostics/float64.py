"""A model in float64, whatever it rounds to inside its forward pass: what its own rounding is, is the difference from this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CASTS: dict[Any, Callable[..., Any]] = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
    Tensor.cfloat: Tensor.cdouble,  # type: ignore[attr-defined]
}


class _Widening(TorchFunctionMode):
    """Calls each torch function with float64 and complex128 in the place of dtypes of fewer bits."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        del types
        if func is Tensor.view:  # of other bytes, not a cast
            return func(*args, **(kwargs or {}))
        return _CASTS.get(func, func)(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()})


def _widened(argument: Any) -> Any:
    if not isinstance(argument, torch.dtype):
        return argument
    return torch.float64 if argument.is_floating_point else torch.complex128 if argument.is_complex else argument


@contextmanager
def all_in_float64() -> Iterator[None]:
    """Inside, casts to fewer bits and new tensors are float64. Autocast leaves float64 as it is. Scripted code is not changed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widening():
            yield
    finally:
        torch.set_default_dtype(before)
