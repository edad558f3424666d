"""Random projections of per-sample gradients to k numbers, whose inner products are unbiased (Johnson and Lindenstrauss 1984).

For any x and z, E <R x, R z> = <x, z> with a variance of at most 2 |x|^2 |z|^2 / k. R is drawn from a seed, parameter by parameter and a
few rows at a time. It never exists as a whole, and both sides of a product use the same R.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factored_weight import FactoredWeight, weight_gradients
from genrep_dist.core.gradients.factors import DenseGradients, LayerFactors
from genrep_dist.seeds import derive_seed

NONZEROS = 4
"""Nonzero numbers in each column of a sparse R (Kane and Nelson 2014)."""
MATRIX_NUMEL = 2**22
"""Numbers of R that exist at once, and numbers of the gradients that are multiplied with them."""


@dataclass(frozen=True)
class Projection:
    """R (k, P) for k = ``dim``: random signs over sqrt(k) ("rademacher"), or four random signs over 2 in each column ("sparse").

    "sparse" is faster for large k. For projections of factors see :mod:`genrep_dist.core.gradients.factored_projection`.
    """

    dim: int
    kind: Literal["rademacher", "sparse"]
    seed: int

    @property
    def error(self) -> float:
        """An upper bound of the standard deviation of a product, in units of |x| |z|."""
        return math.sqrt(2 / self.dim)

    def width(self, weights: Sequence[FactoredWeight], rest_numel: int) -> int:
        """Numbers of a projected gradient."""
        del weights, rest_numel
        return self.dim

    def project(self, gradients: FactoredGradients) -> FactoredGradients:
        """The projected gradients (B, C, k) as a block with one parameter of k numbers. Parts of R and of dense gradients are temporary."""
        num_rows, num_outputs, _ = gradients.rest.shape
        result = gradients.rest.new_zeros(num_rows * num_outputs, self.dim)
        at = 0
        for name, shape in gradients.rest_parameters:
            size = math.prod(shape)
            self._add(result, name, 0, gradients.rest[:, :, at : at + size].reshape(num_rows * num_outputs, size))
            at += size
        for weight, factors in zip(gradients.weights, gradients.factors, strict=True):
            if isinstance(factors, TokenGradients):
                self._add_tokens(result, weight, factors, num_outputs)
            else:
                self._add_weight(result, weight, factors)
        shapes = (("projected", (self.dim,)),)
        return FactoredGradients((), (), result.view(num_rows, num_outputs, self.dim), shapes, shapes)

    def _add_weight(self, result: Tensor, weight: FactoredWeight, factors: LayerFactors | DenseGradients) -> None:
        """Add a weight's projected gradients, a few of its outputs O at a time; all at once for a grouped convolution."""
        outputs = weight.shape[0]
        step = outputs if weight.groups > 1 else max(1, MATRIX_NUMEL // (weight.patch_numel * len(result)))
        for first in range(0, outputs, step):
            if isinstance(factors, DenseGradients):
                dense = factors.values[:, :, first : first + step]
            else:
                part = weight if weight.groups > 1 else replace(weight, shape=(min(step, outputs - first), *weight.shape[1:]))
                dense = weight_gradients(part, factors.inputs, factors.gradients[..., first : first + step])
            # R is drawn output by output, so that it does not depend on ``step``.
            for place, gradients in enumerate(dense.flatten(0, 1).unbind(1)):
                self._add(result, weight.name, first + place, gradients)

    def _add_tokens(self, result: Tensor, weight: FactoredWeight, factors: TokenGradients, num_outputs: int) -> None:
        """Add an embedding's projected gradients. Rows of R are drawn only for tokens that occur."""
        order = torch.argsort(factors.tokens, stable=True)
        tokens, counts = torch.unique_consecutive(factors.tokens[order], return_counts=True)
        samples = factors.samples
        for token, mine in zip(tokens.tolist(), torch.split(order, counts.tolist()), strict=True):
            values = factors.values[mine].flatten(0, 1)
            rows = (samples[mine].unsqueeze(1) * num_outputs + torch.arange(num_outputs, device=mine.device)).flatten()
            projected = values.new_zeros(len(values), self.dim)
            self._add(projected, weight.name, token, values)
            # A sample holds each token once, so no two rows are added to one place.
            result.index_add_(0, rows, projected)

    def _add(self, result: Tensor, name: str, place: int, gradients: Tensor) -> None:
        """Add the projections of gradients (R, n) of the part ``place`` of a parameter to ``result`` (R, k)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "projection", self.kind, name, place))
        step = max(1, MATRIX_NUMEL // self.dim)
        for first in range(0, gradients.shape[1], step):
            part = gradients[:, first : first + step]
            if self.kind == "rademacher":
                result.addmm_(part, random_signs(part.shape[1], self.dim, generator).to(part), alpha=1 / math.sqrt(self.dim))
                continue
            places = torch.randint(0, self.dim, (NONZEROS, part.shape[1]), generator=generator).to(part.device)
            for entry, signs in zip(places, random_signs(NONZEROS, part.shape[1], generator).to(part), strict=True):
                result.index_add_(1, entry, part * signs, alpha=1 / math.sqrt(NONZEROS))


def random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) of -1 and 1, float32, eight from each random byte."""
    drawn = torch.randint(0, 256, (rows, -(-columns // 8)), dtype=torch.uint8, generator=generator)
    bits = drawn.unsqueeze(2).bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1)
    return bits.flatten(1)[:, :columns].to(torch.float32).mul_(2).sub_(1)
