"""Projections of layer factors: inputs and output gradients are projected before they are multiplied (LoGra, Choe et al. 2024).

The gradient of a weight is G = sum_t g_t p_t^T (O, K). Its projection is Q G R^T = sum_t (Q g_t) (R p_t)^T, with Q (k_out, O) and
R (k_in, K) of random signs over the square root of k. No row of K O numbers is formed. Products are unbiased, and their variance is at most
((1 + 2/k_in) (1 + 2/k_out) - 1) |G|^2 |H|^2, which gradients of rank one reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factored_weight import FactoredWeight, extract_patches
from genrep_dist.core.gradients.factors import DenseGradients, LayerFactors
from genrep_dist.core.gradients.projection import Projection, random_signs
from genrep_dist.seeds import derive_seed

POSITION_NUMEL = 2**22
"""Numbers of patches and of their projections that exist at once."""


@dataclass(frozen=True)
class FactoredProjection:
    """At most ``dim`` numbers of each weight that has factors, and of all other parameters together, side by side.

    Both sides of a weight get about sqrt(dim) numbers. A side that has no more is kept as it is, and the other one gets the rest; a weight
    of at most ``dim`` numbers is kept exactly. Tokens of an embedding are its inputs, as one-hot rows. Other parameters are projected by
    the sparse :class:`~genrep_dist.core.gradients.projection.Projection`.
    """

    dim: int
    seed: int

    @property
    def error(self) -> float:
        """An upper bound of the standard deviation of a product, in units of |x| |z|: that of gradients of rank one."""
        side = max(1, math.isqrt(self.dim))
        return max(math.sqrt((1 + 2 / side) ** 2 - 1), math.sqrt(2 / self.dim))

    def sides(self, weight: FactoredWeight) -> tuple[int, int]:
        """(k_out, k_in) of a weight."""
        outputs, inputs = _matrix(weight)
        k_in = min(inputs, max(1, math.isqrt(self.dim)))
        k_out = min(outputs, max(1, self.dim // k_in))
        return k_out, min(inputs, max(1, self.dim // k_out))

    def width(self, weights: Sequence[FactoredWeight], rest_numel: int) -> int:
        """Numbers of a projected gradient."""
        return sum(math.prod(self.sides(weight)) for weight in weights) + min(rest_numel, self.dim)

    def project(self, gradients: FactoredGradients) -> FactoredGradients:
        """The projected gradients (B, C, width) as a block with one parameter. Memory: signs of both sides of one weight at a time."""
        num_rows, num_outputs, rest = gradients.rest.shape
        parts = [
            self._weight(weight, factors, num_outputs).flatten(2)
            for weight, factors in zip(gradients.weights, gradients.factors, strict=True)
        ]
        parts.append(gradients.rest if rest <= self.dim else self._rest(gradients))
        values = torch.cat(parts, dim=2)
        shapes = (("projected", (values.shape[2],)),)
        return FactoredGradients((), (), values.view(num_rows, num_outputs, -1), shapes, shapes)

    def _rest(self, gradients: FactoredGradients) -> Tensor:
        others = FactoredGradients((), (), gradients.rest, gradients.rest_parameters, gradients.rest_parameters)
        return Projection(self.dim, "sparse", self.seed).project(others).rest

    def _weight(self, weight: FactoredWeight, factors: LayerFactors | DenseGradients | TokenGradients, num_outputs: int) -> Tensor:
        """(B, C, k_out, k_in)."""
        k_out, k_in = self.sides(weight)
        if isinstance(factors, TokenGradients):
            return self._tokens(weight, factors, num_outputs)
        if isinstance(factors, LayerFactors) and weight.groups == 1:
            return torch.cat([self._products(weight, part) for part in _slices(weight, factors, k_in + k_out)])
        dense = factors.values if isinstance(factors, DenseGradients) else DenseGradients.from_factors(weight, factors).values
        return self._in(weight, self._out(weight, dense.transpose(2, 3)).transpose(2, 3))

    def _products(self, weight: FactoredWeight, factors: LayerFactors) -> Tensor:
        patches = extract_patches(weight, factors.inputs)[:, 0]
        return torch.einsum("bcto,btk->bcok", self._out(weight, factors.gradients), self._in(weight, patches))

    def _tokens(self, weight: FactoredWeight, factors: TokenGradients, num_outputs: int) -> Tensor:
        k_out, k_in = self.sides(weight)
        values, samples = self._out(weight, factors.values), factors.samples
        result = values.new_zeros(len(factors.counts), num_outputs, k_out, k_in)
        if k_in == weight.shape[0]:
            result.permute(0, 3, 1, 2)[samples, factors.tokens] = values  # a sample holds each token once
            return result
        rows = self._signs(weight, "in", k_in, weight.shape[0])[:, factors.tokens].T.to(values)
        step = max(1, POSITION_NUMEL // (num_outputs * k_out * k_in))
        for start in range(0, len(samples), step):
            part = slice(start, start + step)
            result.index_add_(0, samples[part], torch.einsum("uco,uk->ucok", values[part], rows[part]))
        return result

    def _out(self, weight: FactoredWeight, values: Tensor) -> Tensor:
        """Output gradients (..., O) projected to (..., k_out)."""
        return self._side(weight, "out", self.sides(weight)[0], values)

    def _in(self, weight: FactoredWeight, values: Tensor) -> Tensor:
        """Input patches (..., K) projected to (..., k_in)."""
        return self._side(weight, "in", self.sides(weight)[1], values)

    def _side(self, weight: FactoredWeight, side: str, kept: int, values: Tensor) -> Tensor:
        full = values.shape[-1]
        return values if kept == full else values @ self._signs(weight, side, kept, full).T.to(values)

    def _signs(self, weight: FactoredWeight, side: str, kept: int, full: int) -> Tensor:
        """(kept, full) of signs over sqrt(kept), float32."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "projection", "factored", weight.name, side))
        return random_signs(full, kept, generator).T / math.sqrt(kept)


def _matrix(weight: FactoredWeight) -> tuple[int, int]:
    """(O, K): the size of a weight's gradient as a matrix."""
    if weight.kind == "embedding":
        return weight.shape[1], weight.shape[0]
    return weight.numel // weight.patch_numel, weight.patch_numel


def _slices(weight: FactoredWeight, factors: LayerFactors, kept: int) -> Iterator[LayerFactors]:
    """A few samples at a time, so that their patches and projections hold at most POSITION_NUMEL numbers."""
    numel = weight.num_positions * (weight.patch_numel + kept * factors.gradients.shape[1])
    step = max(1, POSITION_NUMEL // numel)
    return (factors.part(start, start + step) for start in range(0, len(factors.inputs), step))
