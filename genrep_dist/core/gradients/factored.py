"""Blocks of per-sample gradients kept as the factors that they are made of, and inner products of such blocks (Eq. 13).

<J(x), J(z)^T> is a sum over layers, and each layer's part is computed without the vector of all parameters: over the tokens that two
samples share for an embedding, as (x . x')(g . g') for a linear layer on vectors, and for convolutions either from the layer's own
gradients, spelled out for a few samples at a time, or over pairs of positions, whichever takes fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenRows, add_token_products
from genrep_dist.core.gradients.layer_rules import Weight, in_order, patches, room_for, rows_at_once, rows_spelled, weight_rows, write_rows
from genrep_dist.errors import ProblemError

RIGHT_ROWS = 64
"""Samples of a right block that are spelled out at once, enough for a matrix product, where the left block has many rows. Where it has at
most so many itself, they are those that the cache holds."""
PAIRS_AT_ONCE = 2**22
"""Numbers of products over pairs of positions that are held at once."""


@dataclass(frozen=True)
class PatchRows:
    """Factors of B samples' gradients of one weight: ``inputs`` (B, H, W, I) and ``gradients`` (B, C, T, O)."""

    inputs: Tensor
    gradients: Tensor

    def part(self, start: int, stop: int) -> PatchRows:
        return PatchRows(self.inputs[start:stop], self.gradients[start:stop])

    @staticmethod
    def joined(parts: list[PatchRows]) -> PatchRows:
        return PatchRows(torch.cat([part.inputs for part in parts]), torch.cat([part.gradients for part in parts]))


@dataclass(frozen=True)
class SpelledRows:
    """Gradients (B, C, O, K) of one weight as they are, where that is smaller; K in the order of :func:`weight_rows`."""

    values: Tensor

    def part(self, start: int, stop: int) -> SpelledRows:
        return SpelledRows(self.values[start:stop])

    @staticmethod
    def joined(parts: list[SpelledRows]) -> SpelledRows:
        return SpelledRows(torch.cat([part.values for part in parts]))

    @staticmethod
    def of(weight: Weight, factor: PatchRows) -> SpelledRows:
        """The factors multiplied out, a few samples at a time."""
        rows, step = len(factor.inputs), rows_at_once(weight)
        result = factor.gradients.new_empty(rows, factor.gradients.shape[1], weight.shape[0], weight.patch)
        room = room_for(weight, min(rows, step), factor.inputs)
        for start in range(0, rows, step):
            some = factor.part(start, start + step)
            weight_rows(weight, some.inputs, some.gradients, result[start : start + step], room)
        return SpelledRows(result)


Factors = PatchRows | SpelledRows | TokenRows
Names = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class FeatureRows:
    """Jacobians J (B, C, P) of B samples as factors: exactly as good as the dense ones, and much smaller.

    ``weights`` and ``factors`` belong together; ``rest`` (B, C, P_rest) holds the gradients of all other parameters, ``rest_names``
    with shapes, side by side. ``order`` has all parameters, in the order of the vector of P.
    """

    weights: tuple[Weight, ...]
    factors: tuple[Factors, ...]
    rest: Tensor
    rest_names: Names
    order: Names

    def __len__(self) -> int:
        return int(self.rest.shape[0])

    @property
    def num_outputs(self) -> int:
        return int(self.rest.shape[1])

    def part(self, start: int, stop: int) -> FeatureRows:
        """The samples ``start`` to ``stop``, as views."""
        factors = tuple(factor.part(start, stop) for factor in self.factors)
        return FeatureRows(self.weights, factors, self.rest[start:stop], self.rest_names, self.order)

    @staticmethod
    def joined(parts: Sequence[FeatureRows]) -> FeatureRows:
        """Blocks of one model's samples, one after the other."""
        first = parts[0]
        if len(parts) == 1:
            return first
        factors = tuple(_joined(_alike(weight, [part.factors[i] for part in parts])) for i, weight in enumerate(first.weights))
        return FeatureRows(first.weights, factors, torch.cat([part.rest for part in parts]), first.rest_names, first.order)

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of numbers."""
        yield self.rest
        for factor in self.factors:
            yield from (factor.inputs, factor.gradients) if isinstance(factor, PatchRows) else (factor.values,)

    @property
    def numbers(self) -> int:
        """Numbers that the block holds in memory."""
        return sum(tensor.numel() for tensor in self.tensors())

    def finite(self) -> Tensor:
        """(B,) bool: whether all of a sample's numbers are."""
        fine = torch.isfinite(self.rest).flatten(1).all(dim=1)
        for factor in self.factors:
            if isinstance(factor, TokenRows):
                bad = ~torch.isfinite(factor.values).flatten(1).all(dim=1)
                fine[factor.samples[bad]] = False
            else:
                tensors = (factor.inputs, factor.gradients) if isinstance(factor, PatchRows) else (factor.values,)
                for tensor in tensors:
                    fine &= torch.isfinite(tensor).flatten(1).all(dim=1)
        return fine

    def to(self, dtype: torch.dtype, device: torch.device | None = None) -> FeatureRows:
        """The block in another dtype; tokens stay whole numbers."""

        def moved(factor: Factors) -> Factors:
            if isinstance(factor, TokenRows):
                return TokenRows(factor.tokens.to(device), factor.values.to(device, dtype), factor.counts.to(device))
            if isinstance(factor, SpelledRows):
                return SpelledRows(factor.values.to(device, dtype))
            return PatchRows(factor.inputs.to(device, dtype), factor.gradients.to(device, dtype))

        factors = tuple(moved(factor) for factor in self.factors)
        return FeatureRows(self.weights, factors, self.rest.to(device, dtype), self.rest_names, self.order)

    def dense(self, result: Tensor | None = None) -> Tensor:
        """The Jacobians (B, C, P) themselves, written into ``result`` where one is given."""
        rows, num_outputs, _ = self.rest.shape
        sizes = {name: torch.Size(shape).numel() for name, shape in self.order}
        if result is None:
            result = self.rest.new_empty(rows, num_outputs, sum(sizes.values()))
        at, place = 0, {}
        for name, size in sizes.items():
            place[name] = slice(at, at + size)
            at += size
        at = 0
        for name, _ in self.rest_names:
            result[:, :, place[name]] = self.rest[:, :, at : at + sizes[name]]
            at += sizes[name]
        for weight, factor in zip(self.weights, self.factors, strict=True):
            target = result[:, :, place[weight.name]]
            if isinstance(factor, TokenRows):
                target.zero_()
                factor.dense_into(target.view(rows, num_outputs, *weight.shape))
                continue
            if isinstance(factor, SpelledRows):
                target.view(rows, num_outputs, *weight.shape)[:] = in_order(weight, factor.values)
                continue
            step = min(rows, rows_spelled(weight, num_outputs))
            room = room_for(weight, step, result)
            for start in range(0, rows, step):
                some = factor.part(start, start + step)
                write_rows(weight, some.inputs, some.gradients, target[start : start + step], room)
        return result

    def self_product(self, own: Tensor) -> Tensor:
        """K (B, C), K[b, c] = <J[b, c], J[b, own_b]> for ``own`` (B,) int64; the diagonal of :meth:`Prepared.inner`."""
        total = _own_products(self.rest, own)
        for weight, factor in zip(self.weights, self.factors, strict=True):
            if isinstance(factor, TokenRows):
                total += factor.self_product(own)
                continue
            step = rows_at_once(weight)
            for start in range(0, len(self), step):
                at = slice(start, start + step)
                total[at] += _own_products(_spelled(weight, factor.part(start, start + step)).flatten(2), own[at])
        return total

    def prepared(self) -> Prepared:
        """The block made ready to be multiplied with many others; for one it is :func:`inner_products`."""
        return Prepared(self, tuple(_ready(w, f) for w, f in zip(self.weights, self.factors, strict=True)))


@dataclass(frozen=True)
class _Vectors:
    """Gradients that are one outer product each: inputs (B, K), gradients (B, C, O)."""

    inputs: Tensor
    gradients: Tensor


@dataclass(frozen=True)
class _Positions:
    """Patches (B, T, K) and gradients (B, C, T, O), to be multiplied over pairs of positions."""

    patches: Tensor
    gradients: Tensor


_Ready = Tensor | _Vectors | _Positions | TokenRows


@dataclass(frozen=True)
class Prepared:
    """A block whose convolutions are spelled out, and ``parts`` of it, a weight each, in the form in which they are multiplied."""

    rows: FeatureRows
    parts: tuple[_Ready, ...]

    def inner(self, other: FeatureRows | Prepared) -> Tensor:
        """The products (B C, B' C') of all rows with all of another block's of the same model; in the rows' dtype.

        Memory beside the result: a few times ``PATCH_NUMBERS``, as a block that is not prepared is spelled out a few samples at a time.
        """
        rows, right = self.rows, other.rows if isinstance(other, Prepared) else other
        spelled = other.parts if isinstance(other, Prepared) else (None,) * len(right.factors)
        if (rows.weights, rows.rest_names) != (right.weights, right.rest_names) or rows.rest.dtype != right.rest.dtype:
            raise ProblemError(
                "blocks of features do not fit each other",
                where="inner products",
                expected=f"{[weight.name for weight in rows.weights]} in {rows.rest.dtype}",
                got=f"{[weight.name for weight in right.weights]} in {right.rest.dtype}",
            )
        result = rows.rest.flatten(0, 1) @ right.rest.flatten(0, 1).T
        for weight, mine, theirs, ready in zip(rows.weights, self.parts, right.factors, spelled, strict=True):
            if isinstance(mine, Tensor) and isinstance(ready, Tensor):
                result.addmm_(mine, ready.T)
                continue
            if isinstance(mine, TokenRows):
                assert isinstance(theirs, TokenRows)
                add_token_products(mine, theirs, result)
                continue
            assert not isinstance(theirs, TokenRows)
            if isinstance(mine, Tensor):
                _add_gradients(weight, mine, theirs, result)
                continue
            step = _right_step(mine, right)
            for start in range(0, len(right), step):
                some = _ready(weight, theirs.part(start, start + step))
                _add_products(mine, some, result[:, start * right.num_outputs : (start + step) * right.num_outputs])
        return result


def inner_products(left: FeatureRows, right: FeatureRows) -> Tensor:
    """The products (B C, B' C') of all rows of two blocks of one model, a few of either's spelled out at a time."""
    return left.prepared().inner(right)


def _add_gradients(weight: Weight, mine: Tensor, theirs: PatchRows | SpelledRows, result: Tensor) -> None:
    """Add the products (B C, B' C') of spelled-out gradients with those of another block, a few samples of it at a time."""
    few = len(mine) <= RIGHT_ROWS
    rows, num_outputs = (theirs.values if isinstance(theirs, SpelledRows) else theirs.gradients).shape[:2]
    step = rows_spelled(weight, num_outputs) if few else RIGHT_ROWS
    room = spelled = mine.new_empty(0)
    if isinstance(theirs, PatchRows):
        room = room_for(weight, min(step, rows), mine)
        spelled = mine.new_empty(min(step, rows), num_outputs, weight.shape[0], weight.patch)
    for start in range(0, rows, step):
        some = theirs.part(start, start + step)
        if isinstance(some, SpelledRows):
            values = some.values
        else:
            values = weight_rows(weight, some.inputs, some.gradients, spelled[: len(some.inputs)], room)
        flat = values.flatten(0, 1).flatten(1)
        columns = result[:, start * num_outputs : start * num_outputs + len(flat)]
        if few:
            columns += (flat @ mine.T).T
        else:
            columns.addmm_(mine, flat.T)


def _right_step(mine: _Vectors | _Positions, right: FeatureRows) -> int:
    """Samples of the right block at once."""
    if isinstance(mine, _Vectors):
        return max(1, len(right))
    rows, positions = mine.patches.shape[:2]
    pairs = right.num_outputs * mine.gradients.shape[1]
    return max(1, PAIRS_AT_ONCE // (rows * positions * positions * pairs))


def _ready(weight: Weight, factor: Factors) -> _Ready:
    if isinstance(factor, TokenRows):
        return factor
    if isinstance(factor, SpelledRows):
        assert weight.product == "gradients"
        return _flat(factor.values)
    if weight.product == "vectors":
        return _Vectors(patches(weight, factor.inputs)[:, 0, 0], factor.gradients[:, :, 0])
    if weight.product == "positions":
        return _Positions(patches(weight, factor.inputs)[:, 0], factor.gradients)
    return _flat(SpelledRows.of(weight, factor).values)


def _flat(values: Tensor) -> Tensor:
    """(B, C, O, K) as (B C, O K); of few rows the numbers of all rows side by side, which a product with few others reads faster."""
    flat = values.flatten(0, 1).flatten(1)
    return flat.T.contiguous().T if len(flat) <= RIGHT_ROWS else flat


def _spelled(weight: Weight, factor: PatchRows | SpelledRows) -> Tensor:
    """(B, C, O, K)."""
    return factor.values if isinstance(factor, SpelledRows) else weight_rows(weight, factor.inputs, factor.gradients)


def _add_products(mine: _Vectors | _Positions, theirs: _Ready, result: Tensor) -> None:
    """Add the products (B C, B' C') of one weight's part of two blocks to ``result``."""
    if isinstance(mine, _Vectors):
        assert isinstance(theirs, _Vectors)
        (rows, outputs, width), (others, other_outputs, _) = mine.gradients.shape, theirs.gradients.shape
        gradients = mine.gradients.reshape(-1, width) @ theirs.gradients.reshape(-1, width).T
        inputs = mine.inputs @ theirs.inputs.T
        spread = gradients.view(rows, outputs, others, other_outputs).mul_(inputs[:, None, :, None])
        result += spread.view(rows * outputs, others * other_outputs)
    else:
        assert isinstance(theirs, _Positions)
        (rows, outputs, positions, width), (others, other_outputs, _, _) = mine.gradients.shape, theirs.gradients.shape
        inputs = mine.patches.flatten(0, 1) @ theirs.patches.flatten(0, 1).T
        gradients = mine.gradients.reshape(-1, width) @ theirs.gradients.reshape(-1, width).T
        spread = gradients.view(rows, outputs, positions, others, other_outputs, positions)
        spread = spread.mul_(inputs.view(rows, 1, positions, others, 1, positions))
        result += spread.sum(dim=(2, 5)).reshape(rows * outputs, others * other_outputs)


def _own_products(rows: Tensor, own: Tensor) -> Tensor:
    """(B, C) for gradients (B, C, n)."""
    explained = rows[torch.arange(len(own), device=own.device), own]
    return torch.einsum("bcn,bn->bc", rows, explained)


def _alike(weight: Weight, parts: list[Factors]) -> list[Factors]:
    """The blocks of one weight; where one is kept as gradients, all are."""
    if not any(isinstance(part, SpelledRows) for part in parts):
        return parts
    return [SpelledRows.of(weight, part) if isinstance(part, PatchRows) else part for part in parts]


def _joined(parts: list[Factors]) -> Factors:
    """Blocks of one weight, all of one kind, one after the other."""
    tokens = [part for part in parts if isinstance(part, TokenRows)]
    if tokens:
        return TokenRows.joined(tokens)
    spelled = [part for part in parts if isinstance(part, SpelledRows)]
    if spelled:
        return SpelledRows.joined(spelled)
    return PatchRows.joined([part for part in parts if isinstance(part, PatchRows)])
