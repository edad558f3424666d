"""Gradients of an embedding: rows of numbers for the tokens that a sample holds, and nothing for all other tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FREQUENT = 64
"""A token that more than one in so many pairs of samples share is multiplied as columns of a matrix, others pair by pair."""
COLUMN_NUMBERS = 2**22
"""Numbers of such columns that are spelled out at once."""
PAIR_NUMBERS = 2**21
"""Numbers of shared tokens' rows that are gathered at once."""


@dataclass(frozen=True)
class TokenRows:
    """For B samples their distinct tokens, each with the sum of its output gradients: U rows in all, sample by sample, tokens ascending.

    ``tokens`` (U,) int64, ``values`` (U, C, D), ``counts`` (B,) int64: how many of the U rows are each sample's.
    """

    tokens: Tensor
    values: Tensor
    counts: Tensor

    @staticmethod
    def of(tokens: Tensor, gradients: Tensor, padding_index: int | None) -> TokenRows:
        """From tokens (B, T) and output gradients (B, C, T, D); tokens without gradient, padding among them, are left out."""
        rows, num_outputs, _, width = gradients.shape
        alive = (gradients != 0).any(dim=3).any(dim=1)
        if padding_index is not None:
            alive &= tokens != padding_index
        sample, position = alive.nonzero(as_tuple=True)
        vocabulary = int(tokens.max()) + 1 if tokens.numel() else 1
        keys, place = torch.unique(sample * vocabulary + tokens[sample, position].long(), return_inverse=True)
        values = gradients.new_zeros(len(keys), num_outputs, width)
        values.index_add_(0, place, gradients[sample, :, position])
        counts = torch.bincount(keys // vocabulary, minlength=rows)
        return TokenRows(keys % vocabulary, values, counts)

    @property
    def samples(self) -> Tensor:
        """(U,): the sample of each row."""
        return torch.repeat_interleave(torch.arange(len(self.counts), device=self.counts.device), self.counts)

    def part(self, start: int, stop: int) -> TokenRows:
        """The samples ``start`` to ``stop``."""
        first, last = (int(self.counts[:end].sum()) for end in (start, stop))
        return TokenRows(self.tokens[first:last], self.values[first:last], self.counts[start:stop])

    @staticmethod
    def joined(parts: list[TokenRows]) -> TokenRows:
        return TokenRows(
            torch.cat([part.tokens for part in parts]), torch.cat([part.values for part in parts]), torch.cat([p.counts for p in parts])
        )

    def dense_into(self, result: Tensor) -> None:
        """Add to ``result`` (B, C, vocabulary, D), a view of any strides."""
        result[self.samples, :, self.tokens] += self.values

    def self_product(self, own: Tensor) -> Tensor:
        """(B, C): each output's gradient times that of output ``own[b]``."""
        samples = self.samples
        explained = self.values[torch.arange(len(samples), device=own.device), own[samples]]
        products = torch.einsum("ucd,ud->uc", self.values, explained)
        return products.new_zeros(len(self.counts), products.shape[1]).index_add_(0, samples, products)


def add_token_products(left: TokenRows, right: TokenRows, result: Tensor) -> None:
    """Add <left_i, right_j> of all pairs to ``result`` (B C, B' C'). Only tokens that both have cost anything."""
    left_tokens, left_place, left_counts = torch.unique(left.tokens, return_inverse=True, return_counts=True)
    right_tokens, right_place, right_counts = torch.unique(right.tokens, return_inverse=True, return_counts=True)
    # For each of the left's distinct tokens its place among the right's, or -1.
    at = torch.searchsorted(right_tokens, left_tokens).clamp(max=max(len(right_tokens) - 1, 0))
    if not len(right_tokens) or not len(left_tokens):
        return
    shared = right_tokens[at] == left_tokens
    frequent = shared & (left_counts * right_counts[at] * FREQUENT > len(left.counts) * len(right.counts))
    _add_columns(left, right, frequent.nonzero()[:, 0], at[frequent], left_place, right_place, result)
    rare = shared & ~frequent
    _add_pairs(left, right, rare, at, left_place, right_place, right_counts, result)


def _add_columns(
    left: TokenRows, right: TokenRows, on_left: Tensor, on_right: Tensor, left_place: Tensor, right_place: Tensor, result: Tensor
) -> None:
    """Products over tokens that many samples share: their rows as columns of a dense matrix."""
    width = left.values.shape[2]
    numbers = max(len(left.counts) * left.values.shape[1], len(right.counts) * right.values.shape[1]) * width
    at_once = max(1, COLUMN_NUMBERS // max(1, numbers))
    for start in range(0, len(on_left), at_once):
        chosen = slice(start, start + at_once)
        columns = _columns(left, on_left[chosen], left_place)
        result.addmm_(columns, _columns(right, on_right[chosen], right_place).T)


def _columns(rows: TokenRows, chosen: Tensor, place: Tensor) -> Tensor:
    """(B C, chosen D)."""
    _, num_outputs, width = rows.values.shape
    column = torch.full((int(place.max()) + 1,), -1, dtype=torch.int64, device=place.device)
    column[chosen] = torch.arange(len(chosen), device=place.device)
    where = column[place]
    kept = (where >= 0).nonzero()[:, 0]
    dense = rows.values.new_zeros(len(rows.counts), num_outputs, len(chosen), width)
    dense[rows.samples[kept], :, where[kept]] = rows.values[kept]
    return dense.reshape(len(rows.counts) * num_outputs, -1)


def _add_pairs(
    left: TokenRows,
    right: TokenRows,
    rare: Tensor,
    at: Tensor,
    left_place: Tensor,
    right_place: Tensor,
    right_counts: Tensor,
    result: Tensor,
) -> None:
    """Products over tokens that few samples share: one for each pair of rows with the same token."""
    by_token = torch.argsort(right_place, stable=True)
    begins = torch.cat([right_counts.new_zeros(1), right_counts.cumsum(0)])
    kept = rare[left_place].nonzero()[:, 0]
    token = at[left_place[kept]]
    partners = right_counts[token]
    first, ends = begins[token], partners.cumsum(0)
    left_samples, right_samples = left.samples, right.samples
    (_, num_outputs, width), others = left.values.shape, right.values.shape[1]
    at_once = max(1, PAIR_NUMBERS // (width * max(num_outputs, others)))
    columns = len(right.counts)
    start = 0
    while start < len(kept):
        done = int(ends[start - 1]) if start else 0
        # At least one row, however many partners it has: they are one for each sample at most.
        stop = max(start + 1, int(torch.searchsorted(ends, torch.tensor(done + at_once, device=ends.device), right=True)))
        count = partners[start:stop]
        mine = torch.repeat_interleave(torch.arange(start, stop, device=ends.device), count)
        theirs = by_token[first[mine] + torch.arange(len(mine), device=ends.device) - (ends[mine] - partners[mine] - done)]
        row = kept[mine]
        pair = left_samples[row] * columns + right_samples[theirs]
        if num_outputs == others == 1:
            # Two gathers and a product, without the transposes of the general case.
            products = (left.values[row, 0] * right.values[theirs, 0]).sum(dim=1)
            result.view(-1).index_add_(0, pair, products)
        else:
            products = torch.einsum("pcd,ped->pce", left.values[row], right.values[theirs])
            spread = result.new_zeros(len(left.counts) * columns, num_outputs, others).index_add_(0, pair, products)
            spread = spread.view(len(left.counts), columns, num_outputs, others).permute(0, 2, 1, 3)
            result += spread.reshape(result.shape)
        start = stop
