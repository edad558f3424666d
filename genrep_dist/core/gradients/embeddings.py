"""Per-sample gradients of an embedding: one row for each token that a sample holds; all other rows are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FREQUENT = 64
"""Tokens that more than one in FREQUENT pairs of samples share are multiplied as columns of a matrix, rarer ones pair by pair."""
COLUMN_NUMEL = 2**22
"""Numbers of the columns that are formed at once."""
PAIR_NUMEL = 2**21
"""Numbers of the rows that are gathered at once for pairs with the same token."""


@dataclass(frozen=True)
class TokenGradients:
    """Gradients of B samples by their distinct tokens: U rows in all, sample by sample, tokens ascending within a sample.

    ``tokens`` (U,) int64, ``values`` (U, C, D) the sums of the output gradients of each token, ``counts`` (B,) int64 rows of each sample.
    """

    tokens: Tensor
    values: Tensor
    counts: Tensor

    @staticmethod
    def from_outputs(tokens: Tensor, gradients: Tensor, padding_index: int | None) -> TokenGradients:
        """From tokens (B, T) and output gradients (B, C, T, D). Tokens with zero gradient, such as padding, are left out."""
        rows, num_outputs, _, width = gradients.shape
        nonzero = (gradients != 0).any(dim=3).any(dim=1)
        if padding_index is not None:
            nonzero &= tokens != padding_index
        sample, position = nonzero.nonzero(as_tuple=True)
        vocabulary = int(tokens.max()) + 1 if tokens.numel() else 1
        keys, place = torch.unique(sample * vocabulary + tokens[sample, position].long(), return_inverse=True)
        values = gradients.new_zeros(len(keys), num_outputs, width)
        values.index_add_(0, place, gradients[sample, :, position])
        counts = torch.bincount(keys // vocabulary, minlength=rows)
        return TokenGradients(keys % vocabulary, values, counts)

    @staticmethod
    def from_dense(gradients: Tensor) -> TokenGradients:
        """From gradients (B, C, vocabulary, D). Tokens with zero gradient are left out."""
        nonzero = (gradients != 0).any(dim=3).any(dim=1)
        samples, tokens = nonzero.nonzero(as_tuple=True)
        return TokenGradients(tokens, gradients[samples, :, tokens], nonzero.sum(dim=1))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The floating-point tensors."""
        return (self.values,)

    @property
    def samples(self) -> Tensor:
        """(U,): the sample of each row."""
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.counts.device), self.counts)

    def part(self, start: int, stop: int) -> TokenGradients:
        """Samples ``start`` to ``stop``, as views."""
        first, last = (int(self.counts[:end].sum()) for end in (start, stop))
        return TokenGradients(self.tokens[first:last], self.values[first:last], self.counts[start:stop])

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> TokenGradients:
        """In another dtype; tokens and counts stay int64."""
        return TokenGradients(self.tokens.to(device), self.values.to(device, dtype), self.counts.to(device))

    def finite_rows(self) -> Tensor:
        """(B,) bool: whether all numbers of a sample are finite."""
        finite = torch.ones(len(self.counts), dtype=torch.bool, device=self.values.device)
        finite[self.samples[~torch.isfinite(self.values).flatten(1).all(dim=1)]] = False
        return finite

    @staticmethod
    def cat(parts: Sequence[TokenGradients]) -> TokenGradients:
        return TokenGradients(*(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "values", "counts")))

    def add_to(self, result: Tensor) -> None:
        """Add the gradients to ``result`` (B, C, vocabulary, D), a view of any strides."""
        result[self.samples, :, self.tokens] += self.values

    def self_product(self, own: Tensor) -> Tensor:
        """(B, C): the inner product of each output's gradient with that of output ``own[b]``."""
        samples = self.samples
        explained = self.values[torch.arange(len(samples), device=own.device), own[samples]]
        products = torch.einsum("ucd,ud->uc", self.values, explained)
        return products.new_zeros(len(self.counts), products.shape[1]).index_add_(0, samples, products)


def add_token_products(left: TokenGradients, right: TokenGradients, result: Tensor) -> None:
    """Add the inner products of all pairs of rows to ``result`` (B C, B' C'). Cost: only tokens that both blocks hold."""
    left_tokens, left_place, left_counts = torch.unique(left.tokens, return_inverse=True, return_counts=True)
    right_tokens, right_place, right_counts = torch.unique(right.tokens, return_inverse=True, return_counts=True)
    # For each distinct token of the left block its place among those of the right block.
    at = torch.searchsorted(right_tokens, left_tokens).clamp(max=max(len(right_tokens) - 1, 0))
    if not len(right_tokens) or not len(left_tokens):
        return
    shared = right_tokens[at] == left_tokens
    frequent = shared & (left_counts * right_counts[at] * FREQUENT > len(left.counts) * len(right.counts))
    _add_columns(left, right, frequent.nonzero()[:, 0], at[frequent], left_place, right_place, result)
    _add_pairs(left, right, shared & ~frequent, at, left_place, right_place, right_counts, result)


def _add_columns(
    left: TokenGradients, right: TokenGradients, on_left: Tensor, on_right: Tensor, left_place: Tensor, right_place: Tensor, result: Tensor
) -> None:
    """Add products over tokens that many samples share: their rows become columns of a dense matrix."""
    width = left.values.shape[2]
    numel = max(len(left.counts) * left.values.shape[1], len(right.counts) * right.values.shape[1]) * width
    at_once = max(1, COLUMN_NUMEL // max(1, numel))
    for start in range(0, len(on_left), at_once):
        chosen = slice(start, start + at_once)
        columns = _columns(left, on_left[chosen], left_place)
        result.addmm_(columns, _columns(right, on_right[chosen], right_place).T)


def _columns(rows: TokenGradients, chosen: Tensor, place: Tensor) -> Tensor:
    """Dense columns (B C, chosen D) of the chosen distinct tokens."""
    _, num_outputs, width = rows.values.shape
    column = torch.full((int(place.max()) + 1,), -1, dtype=torch.int64, device=place.device)
    column[chosen] = torch.arange(len(chosen), device=place.device)
    where = column[place]
    kept = (where >= 0).nonzero()[:, 0]
    dense = rows.values.new_zeros(len(rows.counts), num_outputs, len(chosen), width)
    dense[rows.samples[kept], :, where[kept]] = rows.values[kept]
    return dense.reshape(len(rows.counts) * num_outputs, -1)


def _add_pairs(
    left: TokenGradients,
    right: TokenGradients,
    rare: Tensor,
    at: Tensor,
    left_place: Tensor,
    right_place: Tensor,
    right_counts: Tensor,
    result: Tensor,
) -> None:
    """Add products over tokens that few samples share, one for each pair of rows with the same token."""
    by_token = torch.argsort(right_place, stable=True)
    begins = torch.cat([right_counts.new_zeros(1), right_counts.cumsum(0)])
    kept = rare[left_place].nonzero()[:, 0]
    token = at[left_place[kept]]
    partners = right_counts[token]
    first, ends = begins[token], partners.cumsum(0)
    left_samples, right_samples = left.samples, right.samples
    (_, num_outputs, width), others = left.values.shape, right.values.shape[1]
    at_once = max(1, PAIR_NUMEL // (width * max(num_outputs, others)))
    columns = len(right.counts)
    start = 0
    while start < len(kept):
        done = int(ends[start - 1]) if start else 0
        # At least one row: it has at most one partner in each sample.
        stop = max(start + 1, int(torch.searchsorted(ends, torch.tensor(done + at_once, device=ends.device), right=True)))
        count = partners[start:stop]
        mine = torch.repeat_interleave(torch.arange(start, stop, device=ends.device), count)
        theirs = by_token[first[mine] + torch.arange(len(mine), device=ends.device) - (ends[mine] - partners[mine] - done)]
        row = kept[mine]
        pair = left_samples[row] * columns + right_samples[theirs]
        if num_outputs == others == 1:
            # Two gathers and a product avoid the transposes of the general case.
            products = (left.values[row, 0] * right.values[theirs, 0]).sum(dim=1)
            result.view(-1).index_add_(0, pair, products)
        else:
            products = torch.einsum("pcd,ped->pce", left.values[row], right.values[theirs])
            spread = result.new_zeros(len(left.counts) * columns, num_outputs, others).index_add_(0, pair, products)
            spread = spread.view(len(left.counts), columns, num_outputs, others).permute(0, 2, 1, 3)
            result += spread.reshape(result.shape)
        start = stop
