"""Checks of what kernels and importances return: the form, finite numbers, and certificates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.kernels.base import FeatureKernel
from genrep_dist.errors import NonFiniteError
from genrep_dist.extension import owner_text, require_returned

Rows = Tensor | FactoredGradients


def checked_tensor(value: Any, shape: Sequence[int], owner: object, method: str, where: str) -> Tensor:
    """``value`` if it is a floating-point tensor of this shape with finite numbers. Raises ProblemError or NonFiniteError."""
    fits = isinstance(value, Tensor) and value.shape == tuple(shape) and value.is_floating_point()
    require_returned(fits, owner, method, f"floating point {tuple(shape)}", _form(value), where)
    tensor: Tensor = value
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(
            f"{method} returned NaN or Inf",
            where=f"{owner_text(owner)}.{method}, {where}",
            expected="finite numbers",
            got=f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} numbers",
        )
    return tensor


def checked_features(value: Any, count: int, kernel: FeatureKernel, where: str, *, of_points: bool = False) -> Rows:
    """``value`` if it is features of ``count`` samples. Raises ProblemError."""
    if kernel.factored:
        fits, expected = isinstance(value, FactoredGradients) and len(value) == count, f"FactoredGradients of {count} samples"
    else:
        dims = (2,) if of_points else (2, 3)
        fits = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() in dims and len(value) == count
        expected = f"torch.float32 ({count}, features)" + ("" if of_points else f" or ({count}, outputs, features)")
    require_returned(fits, kernel, "features", expected, _form(value), where)
    rows: Rows = value
    return rows


def checked_certificate(value: Any, required: str, owner: object, method: str, where: str) -> dict[str, Any]:
    """``value`` if it is plain data with the finite number ``required``. Raises ProblemError."""
    number = value.get(required) if isinstance(value, Mapping) else None
    fits = isinstance(number, (int, float)) and math.isfinite(number)
    require_returned(fits, owner, method, f"a certificate with the finite number {required!r}", value, where)
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        require_returned(False, owner, method, "a certificate of plain numbers and texts", f"{error}: {value!r}", where)
    return dict(value)


def checked_pair(value: Any, owner: object, method: str, where: str) -> tuple[Any, Any]:
    """``value`` if it is a tuple of two. Raises ProblemError."""
    require_returned(isinstance(value, tuple) and len(value) == 2, owner, method, "a tensor and its certificate", value, where)
    first, second = value
    return first, second


def _form(value: Any) -> str:
    if isinstance(value, FactoredGradients):
        return f"FactoredGradients of {len(value)} samples"
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
