"""Random projections of features: k numbers instead of P, whose inner products are right on average (Johnson and Lindenstrauss).

For any x and z: E <R x, R z> = <x, z>, with a variance of at most 2 |x|^2 |z|^2 / k. R is drawn parameter by parameter from a seed, a few
rows at a time, so that it never exists as a whole, and so that both sides of a product see the same one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenRows
from genrep_dist.core.gradients.factored import FeatureRows, PatchRows, SpelledRows
from genrep_dist.core.gradients.layer_rules import Weight, weight_rows
from genrep_dist.seeds import derive_seed

ENTRIES = 4
"""Numbers that are not zero in each column of a sparse R (Kane and Nelson 2014)."""
MATRIX_NUMBERS = 2**22
"""Numbers of R that exist at once, and of gradients that are multiplied with them."""


@dataclass(frozen=True)
class Projection:
    """R (k, P): 'rademacher', signs over sqrt(k); or 'sparse', four signs over 2 in each column, which is faster for large k."""

    dim: int
    kind: Literal["rademacher", "sparse"]
    seed: int

    @property
    def error(self) -> float:
        """The standard deviation of a product, in units of |x| |z|, at most."""
        return math.sqrt(2 / self.dim)

    def of(self, rows: FeatureRows) -> FeatureRows:
        """The projected rows (B, C, k), as a block of one parameter of k numbers; R and dense rows exist a part at a time."""
        num_rows, num_outputs, _ = rows.rest.shape
        result = rows.rest.new_zeros(num_rows * num_outputs, self.dim)
        at = 0
        for name, shape in rows.rest_names:
            size = math.prod(shape)
            self._add(result, name, 0, rows.rest[:, :, at : at + size].reshape(num_rows * num_outputs, size))
            at += size
        for weight, factor in zip(rows.weights, rows.factors, strict=True):
            if isinstance(factor, TokenRows):
                self._add_tokens(result, weight, factor, num_outputs)
            else:
                self._add_weight(result, weight, factor)
        names = (("projected", (self.dim,)),)
        return FeatureRows((), (), result.view(num_rows, num_outputs, self.dim), names, names)

    def _add_weight(self, result: Tensor, weight: Weight, factor: PatchRows | SpelledRows) -> None:
        """A weight's gradients, a few of its outputs O at a time. (Groups share no inputs: then all at once.)"""
        outputs = weight.shape[0]
        step = outputs if weight.groups > 1 else max(1, MATRIX_NUMBERS // (weight.patch * len(result)))
        for first in range(0, outputs, step):
            if isinstance(factor, SpelledRows):
                some = factor.values[:, :, first : first + step]
            else:
                part = weight if weight.groups > 1 else _narrow(weight, min(step, outputs - first))
                some = weight_rows(part, factor.inputs, factor.gradients[..., first : first + step])
            # Drawn output by output: how many are taken at a time must not change R.
            for place, gradients in enumerate(some.flatten(0, 1).unbind(1)):
                self._add(result, weight.name, first + place, gradients)

    def _add_tokens(self, result: Tensor, weight: Weight, factor: TokenRows, num_outputs: int) -> None:
        """An embedding's gradients: only the tokens that are there have rows of R drawn."""
        order = torch.argsort(factor.tokens, stable=True)
        tokens, counts = torch.unique_consecutive(factor.tokens[order], return_counts=True)
        samples = factor.samples
        for token, mine in zip(tokens.tolist(), torch.split(order, counts.tolist()), strict=True):
            values = factor.values[mine].flatten(0, 1)
            rows = (samples[mine].unsqueeze(1) * num_outputs + torch.arange(num_outputs, device=mine.device)).flatten()
            projected = values.new_zeros(len(values), self.dim)
            self._add(projected, weight.name, token, values)
            # A sample has each token once: no two rows are added to one place.
            result.index_add_(0, rows, projected)

    def _add(self, result: Tensor, name: str, place: int, gradients: Tensor) -> None:
        """Add (R, n) gradients of the part ``place`` of a parameter, projected, to ``result`` (R, k)."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "projection", self.kind, name, place))
        step = max(1, MATRIX_NUMBERS // self.dim)
        for first in range(0, gradients.shape[1], step):
            some = gradients[:, first : first + step]
            if self.kind == "rademacher":
                result.addmm_(some, _signs(some.shape[1], self.dim, generator).to(some), alpha=1 / math.sqrt(self.dim))
                continue
            places = torch.randint(0, self.dim, (ENTRIES, some.shape[1]), generator=generator).to(some.device)
            for entry, signs in zip(places, _signs(ENTRIES, some.shape[1], generator).to(some), strict=True):
                result.index_add_(1, entry, some * signs, alpha=1 / math.sqrt(ENTRIES))


def _narrow(weight: Weight, outputs: int) -> Weight:
    """The same layer with so many outputs."""
    fields = {**vars(weight), "shape": (outputs, *weight.shape[1:])}
    return Weight(**fields)


def _signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) of -1 and 1, float32, eight from each random byte."""
    drawn = torch.randint(0, 256, (rows, -(-columns // 8)), dtype=torch.uint8, generator=generator)
    bits = drawn.unsqueeze(2).bitwise_right_shift(torch.arange(8, dtype=torch.uint8)).bitwise_and(1)
    return bits.flatten(1)[:, :columns].to(torch.float32).mul_(2).sub_(1)
