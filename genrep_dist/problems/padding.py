"""Samples of several lengths as one tensor and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genrep_dist.errors import ProblemError


class PaddedRows(NamedTuple):
    """``values`` (N, L, ...) and ``mask`` (N, L) int64: 1 where there is a value, 0 for padding."""

    values: Tensor
    mask: Tensor


def pad_rows(rows: Sequence[Any], length: int | None = None, value: float = 0) -> PaddedRows:
    """Pad ``rows``, tensors, arrays or lists of shapes (L_i, ...), at their ends with ``value``.

    ``length``: L; by default that of the longest row. Give training and test set the same. Raises ProblemError for rows that are longer,
    that differ in anything but their first dimension, or that are no numbers.
    """
    try:
        tensors = [torch.as_tensor(row) for row in rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProblemError(
            "rows cannot be padded",
            where="pad_rows",
            expected="a sequence of tensors, arrays or lists of numbers",
            got=f"{type(error).__name__}: {error}"[:200],
            remedy="turn texts into token numbers first",
        ) from error
    if length is not None and (isinstance(length, bool) or not isinstance(length, int)):
        raise ProblemError("rows cannot be padded", where="pad_rows", expected="a whole number as length", got=repr(length)[:80])
    forms = {(tensor.dim() > 0, tuple(tensor.shape[1:]), tensor.dtype) for tensor in tensors if tensor.numel() or tensor.dim() != 1}
    longest = max((len(tensor) for tensor in tensors if tensor.dim()), default=0)
    size = longest if length is None else length
    fine = len(forms) == 1 and next(iter(forms))[0]
    if not fine or longest > size or size < 1:
        raise ProblemError(
            "rows cannot be padded",
            where="pad_rows",
            expected="rows (L, ...) of one dtype that differ in L alone" + ("" if length is None else f", with L of at most {length}"),
            got=f"L up to {longest}; " + "; ".join(f"{dtype} {('L', *shape) if has_length else ()}" for has_length, shape, dtype in forms),
            remedy="cut longer rows: row[:length]" if fine else "give all rows one dtype and one shape but for their length",
        )
    _, shape, dtype = next(iter(forms))
    values = torch.full((len(tensors), size, *shape), value, dtype=dtype)
    mask = torch.zeros(len(tensors), size, dtype=torch.int64)
    for row, tensor in enumerate(tensors):
        values[row, : len(tensor)], mask[row, : len(tensor)] = tensor.reshape(len(tensor), *shape), 1
    return PaddedRows(values, mask)
