"""Tensors of any dtype and layout as the plain numbers that numpy, the losses and the solvers compute with."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.errors import ProblemError

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
"""Errors that say nothing about a model: they pass where other errors lead to a slower way, so that results do not depend on memory."""
NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
"""Floating-point dtypes that numpy has too."""


def numpy_values(tensor: Tensor) -> npt.NDArray[Any]:
    """The values of a tensor of any layout and device, of the same shape; without a copy where it can be.

    bfloat16 and the floating-point dtypes of 8 bits become float32, which holds all their values; complex32 becomes complex64. Sparse
    and quantized tensors become dense; conjugate and negated views are resolved.
    """
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.dequantize()
    elif plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu().resolve_conj().resolve_neg()
    if plain.is_floating_point() and plain.dtype not in NUMPY_FLOATS:
        plain = plain.float()
    elif plain.dtype == torch.complex32:
        plain = plain.to(torch.complex64)
    values: npt.NDArray[Any] = plain.numpy()
    return values


def numpy_array(values: Any) -> npt.NDArray[Any]:
    """A tensor, or what :func:`numpy.asarray` takes, as an array. Extension dtypes, such as bfloat16 of ml_dtypes, become float32."""
    if isinstance(values, Tensor):
        return numpy_values(values)
    array = np.asarray(values)
    is_extension = array.dtype.kind == "V" and array.dtype.type is not np.void
    return array.astype(np.float32) if is_extension else array


def real_outputs(outputs: Tensor) -> Tensor:
    """A model's outputs (B, C) in a dtype that losses and solvers compute in: float32 for bfloat16 and dtypes of 8 bits.

    Raises ProblemError for integers, complex numbers, and sparse or quantized tensors.
    """
    is_plain = outputs.layout == torch.strided and outputs.is_floating_point()
    if is_plain:
        return outputs if outputs.dtype in NUMPY_FLOATS else outputs.float()
    raise ProblemError(
        "the model's outputs are not real numbers in a dense tensor",
        where="model(inputs)",
        expected="float32 or float64",
        got=f"{outputs.dtype}, {outputs.layout}",
        remedy="return logits in float32: for complex outputs their real part or modulus, for sparse ones to_dense()",
    )
