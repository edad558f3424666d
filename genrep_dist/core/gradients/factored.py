"""Blocks of per-sample gradients kept as factors, and inner products of such blocks (Eq. 13).

<J(x), J(z)^T> is a sum over layers. Each layer's term is computed from its factors, without a vector of all P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.gradients.factored_weight import FactoredWeight
from genrep_dist.core.gradients.factors import WeightGradients, cat_factors, write_dense
from genrep_dist.core.gradients.products import WeightOperand, add_inner_products, dense_self_products, self_products, weight_operand
from genrep_dist.errors import ProblemError

NamedShapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class FactoredGradients:
    """Jacobians J (B, C, P) of B samples as factors: the same numbers as the dense ones, in much less memory.

    ``factors[i]`` belongs to ``weights[i]``. ``rest`` (B, C, P_rest) holds the dense gradients of all other parameters, whose names and
    shapes are ``rest_parameters``. ``parameters`` are the names and shapes of all parameters, in the order of the vector of P numbers.
    """

    weights: tuple[FactoredWeight, ...]
    factors: tuple[WeightGradients, ...]
    rest: Tensor
    rest_parameters: NamedShapes
    parameters: NamedShapes

    def __len__(self) -> int:
        return int(self.rest.shape[0])

    @property
    def num_outputs(self) -> int:
        return int(self.rest.shape[1])

    def part(self, start: int, stop: int) -> FactoredGradients:
        """Samples ``start`` to ``stop``, as views."""
        factors = tuple(factor.part(start, stop) for factor in self.factors)
        return FactoredGradients(self.weights, factors, self.rest[start:stop], self.rest_parameters, self.parameters)

    @staticmethod
    def cat(parts: Sequence[FactoredGradients]) -> FactoredGradients:
        """Consecutive blocks of samples of one model as one block."""
        first = parts[0]
        if len(parts) == 1:
            return first
        factors = tuple(cat_factors(weight, [part.factors[i] for part in parts]) for i, weight in enumerate(first.weights))
        rest = torch.cat([part.rest for part in parts])
        return FactoredGradients(first.weights, factors, rest, first.rest_parameters, first.parameters)

    def tensors(self) -> Iterator[Tensor]:
        """All floating-point tensors."""
        yield self.rest
        for factor in self.factors:
            yield from factor.tensors

    @property
    def numel(self) -> int:
        """Floating-point numbers that the block holds."""
        return sum(tensor.numel() for tensor in self.tensors())

    def finite_rows(self) -> Tensor:
        """(B,) bool: whether all numbers of a sample are finite."""
        finite = torch.isfinite(self.rest).flatten(1).all(dim=1)
        for factor in self.factors:
            finite &= factor.finite_rows()
        return finite

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> FactoredGradients:
        """The block in another dtype and on another device; tokens stay integers."""
        factors = tuple(factor.to(dtype, device) for factor in self.factors)
        return FactoredGradients(self.weights, factors, self.rest.to(device, dtype), self.rest_parameters, self.parameters)

    def to_dense(self, out: Tensor | None = None) -> Tensor:
        """The Jacobians (B, C, P), written into ``out`` if it is given."""
        sizes = {name: math.prod(shape) for name, shape in self.parameters}
        if out is None:
            out = self.rest.new_empty(len(self), self.num_outputs, sum(sizes.values()))
        columns = dict(zip(sizes, torch.split(out, list(sizes.values()), dim=2), strict=True))
        rest = torch.split(self.rest, [sizes[name] for name, _ in self.rest_parameters], dim=2) if self.rest_parameters else ()
        for (name, _), values in zip(self.rest_parameters, rest, strict=True):
            columns[name].copy_(values)
        for weight, factor in zip(self.weights, self.factors, strict=True):
            write_dense(weight, factor, columns[weight.name])
        return out

    def self_product(self, own: Tensor) -> Tensor:
        """K (B, C), K[b, c] = <J[b, c], J[b, own_b]> for ``own`` (B,) int64: the diagonal of the kernel with each sample's own output."""
        total = dense_self_products(self.rest, own)
        for weight, factor in zip(self.weights, self.factors, strict=True):
            total += self_products(weight, factor, own)
        return total

    def as_operand(self) -> GramOperand:
        """The block in the form in which it is multiplied, for products with many others. For one product use :func:`inner_products`."""
        return GramOperand(self, tuple(weight_operand(w, f) for w, f in zip(self.weights, self.factors, strict=True)))


@dataclass(frozen=True)
class GramOperand:
    """A block of gradients with the operand of each weight."""

    gradients: FactoredGradients
    operands: tuple[WeightOperand, ...]

    def inner(self, other: FactoredGradients | GramOperand) -> Tensor:
        """The inner products (B C, B' C') of all rows with all rows of another block of the same model, in the gradients' dtype.

        Memory besides the result: a few times ``PATCH_NUMEL`` numbers, as another block without operands is formed a few samples at a time.
        Raises ProblemError for a block of another model or dtype.
        """
        left, right = self.gradients, other.gradients if isinstance(other, GramOperand) else other
        right_operands = other.operands if isinstance(other, GramOperand) else (None,) * len(right.factors)
        if (left.weights, left.rest_parameters) != (right.weights, right.rest_parameters) or left.rest.dtype != right.rest.dtype:
            raise ProblemError(
                "blocks of gradients do not fit each other",
                where="inner products",
                expected=f"{[weight.name for weight in left.weights]} in {left.rest.dtype}",
                got=f"{[weight.name for weight in right.weights]} in {right.rest.dtype}",
            )
        result = left.rest.flatten(0, 1) @ right.rest.flatten(0, 1).T
        for weight, operand, factors, right_operand in zip(left.weights, self.operands, right.factors, right_operands, strict=True):
            add_inner_products(weight, operand, factors, right_operand, result)
        return result


def inner_products(left: FactoredGradients, right: FactoredGradients) -> Tensor:
    """The inner products (B C, B' C') of all rows of two blocks of one model."""
    return left.as_operand().inner(right)
