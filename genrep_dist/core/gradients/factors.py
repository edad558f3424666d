"""The forms in which the gradients of one weight are kept for B samples: factors, dense gradients, or rows of an embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored_weight import (
    FactoredWeight,
    from_parameter_order,
    in_parameter_order,
    weight_gradients,
    write_gradients,
)


@dataclass(frozen=True)
class _SampleTensors:
    """Base of the forms whose tensors all have the samples as their first dimension."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())

    def part(self, start: int, stop: int) -> Self:
        """Samples ``start`` to ``stop``, as views."""
        return self._map(lambda tensor: tensor[start:stop])

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> Self:
        return self._map(lambda tensor: tensor.to(device, dtype))

    def finite_rows(self) -> Tensor:
        """(B,) bool: whether all numbers of a sample are finite."""
        return torch.stack([torch.isfinite(tensor).flatten(1).all(dim=1) for tensor in self.tensors]).all(dim=0)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        return cls(*(torch.cat(tensors) for tensors in zip(*(part.tensors for part in parts), strict=True)))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: function(tensor) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class LayerFactors(_SampleTensors):
    """``inputs`` (B, H, W, I) of a layer and ``gradients`` (B, C, T, O) of its output."""

    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class DenseGradients(_SampleTensors):
    """Gradients ``values`` (B, C, O, K) of one weight, K in the order of :func:`weight_gradients`. Used where they are smaller."""

    values: Tensor

    @staticmethod
    def from_factors(weight: FactoredWeight, factors: LayerFactors) -> DenseGradients:
        """The factors multiplied out, a few samples at a time."""
        rows, step = len(factors.inputs), weight.patch_rows
        result = factors.gradients.new_empty(rows, factors.gradients.shape[1], weight.shape[0], weight.patch_numel)
        buffer = weight.patch_buffer(min(rows, step), factors.inputs)
        for start in range(0, rows, step):
            part = factors.part(start, start + step)
            weight_gradients(weight, part.inputs, part.gradients, result[start : start + step], buffer)
        return DenseGradients(result)


WeightGradients = LayerFactors | DenseGradients | TokenGradients


def from_dense(weight: FactoredWeight, gradients: Tensor) -> WeightGradients:
    """Gradients (B, C, *shape) of one weight, in the form that fits those that a layer rule computes."""
    if weight.kind == "embedding":
        return TokenGradients.from_dense(gradients)
    return DenseGradients(from_parameter_order(weight, gradients))


def write_dense(weight: FactoredWeight, factors: WeightGradients, out: Tensor) -> None:
    """Write the gradients of one weight in the parameter's order to ``out`` (B, C, numel)."""
    rows, num_outputs = out.shape[:2]
    if isinstance(factors, TokenGradients):
        factors.add_to(out.zero_().view(rows, num_outputs, *weight.shape))
    elif isinstance(factors, DenseGradients):
        values = in_parameter_order(weight, factors.values)
        out.view(values.shape)[:] = values
    else:
        step = min(rows, weight.gradient_rows(num_outputs))
        buffer = weight.patch_buffer(step, out)
        for start in range(0, rows, step):
            part = factors.part(start, start + step)
            write_gradients(weight, part.inputs, part.gradients, out[start : start + step], buffer)


def cat_factors(weight: FactoredWeight, parts: Sequence[WeightGradients]) -> WeightGradients:
    """Consecutive blocks of one weight as one block. If one of them is dense, all are made dense."""
    tokens = [part for part in parts if isinstance(part, TokenGradients)]
    if tokens:
        return TokenGradients.cat(tokens)
    if any(isinstance(part, DenseGradients) for part in parts):
        return DenseGradients.cat(
            [
                DenseGradients.from_factors(weight, part) if isinstance(part, LayerFactors) else part
                for part in parts
                if not isinstance(part, TokenGradients)
            ]
        )
    return LayerFactors.cat([part for part in parts if isinstance(part, LayerFactors)])
