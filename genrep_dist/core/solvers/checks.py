"""Checks of arguments and products that the solvers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from genrep_dist.errors import MethodError, NonFiniteError, ProblemError


def require(where: str, checks: Iterable[tuple[str, bool, str, object]]) -> None:
    """Raise MethodError for the first of ``checks`` (argument, is valid, expected, got) that is not valid."""
    for name, valid, expected, got in checks:
        if not valid:
            raise MethodError(f"invalid argument {name}", where=f"{where} {name}", expected=expected, got=str(got))


def require_form(values: Tensor, shape: Sequence[int], name: str, where: str) -> Tensor:
    """``values`` if they are float64 of this shape; raises ProblemError otherwise."""
    if values.shape != tuple(shape) or values.dtype != torch.float64:
        raise ProblemError(
            f"{name} has the wrong form",
            where=where,
            expected=f"float64 of shape {tuple(shape)}",
            got=f"{values.dtype} of shape {tuple(values.shape)}",
        )
    return values


def require_finite(values: Tensor, name: str, where: str) -> Tensor:
    """``values`` (N, ...) if all are finite; raises NonFiniteError with the row numbers otherwise."""
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not bool(finite.all()):
        rows = (~finite).nonzero().flatten().tolist()
        got = f"{len(rows)} rows, the first: {rows[:10]}"
        raise NonFiniteError(f"{name} hold NaN or Inf", where=where, expected="finite numbers", got=got)
    return values
