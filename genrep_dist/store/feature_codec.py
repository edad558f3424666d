"""Feature rows as a few flat arrays: every tensor in whichever of three forms takes the fewest bytes, none of which loses a bit.

*plain*: all numbers. *marked*: a bit for each number, and the numbers that are not zero. *listed*: the places of those, and they.
Activations behind a ReLU and gradients behind a pooling layer are mostly zeros, and so is all that padding has to do with. The gradient
of a weight is kept as its factors or as itself, whichever is smaller so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factored_weight import FactoredWeight
from genrep_dist.core.gradients.factors import DenseGradients, LayerFactors, WeightGradients
from genrep_dist.errors import CorruptError

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]
Bits = npt.NDArray[np.uint8]

MOST_PLACES = 2**31
"""Places are 32-bit numbers."""


@dataclass(frozen=True)
class Packed:
    """A block: ``numbers`` (float32), ``places`` (int32), ``bits`` (uint8), and what is where, as plain data."""

    numbers: Floats
    places: Places
    bits: Bits
    layout: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        return self.numbers.nbytes + self.places.nbytes + self.bits.nbytes + len(self.layout_bytes())

    def layout_bytes(self) -> bytes:
        return json.dumps(self.layout, sort_keys=True, separators=(",", ":")).encode()


class _Pile:
    """Arrays of one dtype on their way into one."""

    def __init__(self) -> None:
        self.numbers: list[Floats] = []
        self.places: list[Places] = []
        self.bits: list[Bits] = []

    @property
    def num_bytes(self) -> int:
        arrays: list[npt.NDArray[Any]] = [*self.numbers, *self.places, *self.bits]
        return sum(array.nbytes for array in arrays)

    def add(self, tensor: Tensor) -> dict[str, Any]:
        """Take a float32 tensor; what has to be known to get it back."""
        values: Floats = np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(-1)
        filled = np.flatnonzero(values)
        sizes = {"plain": 4 * values.size, "marked": 4 * filled.size + -(-values.size // 8), "listed": 8 * filled.size}
        if values.size >= MOST_PLACES:
            del sizes["listed"]
        form = min(sizes, key=lambda name: sizes[name])
        self.numbers.append(values if form == "plain" else values[filled])
        if form == "marked":
            self.bits.append(np.packbits(values != 0))
        elif form == "listed":
            self.places.append(filled.astype(np.int32))
        return {"shape": list(tensor.shape), "form": form, "filled": int(filled.size)}

    def add_places(self, tensor: Tensor) -> dict[str, Any]:
        """Take whole numbers that fit 32 bits."""
        self.places.append(tensor.cpu().numpy().astype(np.int32).reshape(-1))
        return {"shape": list(tensor.shape), "form": "places"}

    def extend(self, other: _Pile) -> None:
        self.numbers += other.numbers
        self.places += other.places
        self.bits += other.bits


def pack(rows: FactoredGradients) -> Packed:
    """A block of float32 feature rows as flat arrays."""
    pile = _Pile()
    layout: dict[str, Any] = {
        "rest": pile.add(rows.rest),
        "rest_names": [[name, list(shape)] for name, shape in rows.rest_parameters],
        "order": [[name, list(shape)] for name, shape in rows.parameters],
        "weights": [_add_weight(pile, weight, factor) for weight, factor in zip(rows.weights, rows.factors, strict=True)],
    }
    return Packed(
        np.concatenate([*pile.numbers, np.empty(0, np.float32)]),
        np.concatenate([*pile.places, np.empty(0, np.int32)]),
        np.concatenate([*pile.bits, np.empty(0, np.uint8)]),
        layout,
    )


def _add_weight(pile: _Pile, weight: FactoredWeight, factor: WeightGradients) -> dict[str, Any]:
    entry: dict[str, Any] = {"weight": asdict(weight)}
    if isinstance(factor, TokenGradients):
        parts = {"tokens": pile.add_places(factor.tokens), "counts": pile.add_places(factor.counts), "values": pile.add(factor.values)}
        return {**entry, "kept": "tokens", **parts}
    if isinstance(factor, DenseGradients):
        return {**entry, "kept": "gradient", "values": pile.add(factor.values)}
    small = _Pile()
    parts = {"inputs": small.add(touched(weight, factor)), "gradients": small.add(factor.gradients)}
    rows, num_outputs = factor.gradients.shape[:2]
    if weight.product_form == "gradients" and 4 * rows * num_outputs * weight.numel <= small.num_bytes:
        # In the order in which it is multiplied, so that nothing tells it from one that is spelled out when it is used.
        return {**entry, "kept": "gradient", "values": pile.add(DenseGradients.from_factors(weight, factor).values)}
    pile.extend(small)
    return {**entry, "kept": "factors", **parts}


def touched(weight: FactoredWeight, factor: LayerFactors) -> Tensor:
    """The inputs (B, H, W, I) with zeros wherever no output position has a gradient, as behind padding: they change no product."""
    alive = (factor.gradients != 0).any(dim=3).any(dim=1)
    if bool(alive.all()):
        return factor.inputs
    rows, high, wide, _ = factor.inputs.shape
    (top, bottom), (left, right) = weight.padding
    seen = alive.new_zeros(rows, high + top + bottom, wide + left + right)
    grid = alive.view(rows, *weight.output_size)
    (stride_h, stride_w), (grid_h, grid_w) = weight.stride, weight.output_size
    for tap_h in range(weight.kernel[0]):
        for tap_w in range(weight.kernel[1]):
            first_h, first_w = tap_h * weight.dilation[0], tap_w * weight.dilation[1]
            window = seen[:, first_h : first_h + stride_h * grid_h : stride_h, first_w : first_w + stride_w * grid_w : stride_w]
            window[:, :grid_h, :grid_w] |= grid
    inside = seen[:, top : top + high, left : left + wide]
    return factor.inputs * inside.unsqueeze(3)


def unpack(packed: Packed) -> FactoredGradients:
    """What :func:`pack` was given. CorruptError for arrays that do not fit their layout."""
    taken = _Taken(packed)
    layout = packed.layout
    rest = taken.tensor(layout["rest"])
    weights, factors = [], []
    for entry in layout["weights"]:
        weight = _weight(entry["weight"])
        weights.append(weight)
        factors.append(_take_weight(taken, entry))
    taken.finish()
    return FactoredGradients(tuple(weights), tuple(factors), rest, _names(layout["rest_names"]), _names(layout["order"]))


def _take_weight(taken: _Taken, entry: dict[str, Any]) -> WeightGradients:
    if entry["kept"] == "tokens":
        tokens, counts = taken.places(entry["tokens"]), taken.places(entry["counts"])
        return TokenGradients(tokens, taken.tensor(entry["values"]), counts)
    if entry["kept"] == "gradient":
        return DenseGradients(taken.tensor(entry["values"]))
    return LayerFactors(taken.tensor(entry["inputs"]), taken.tensor(entry["gradients"]))


class _Taken:
    """The flat arrays, from the front."""

    def __init__(self, packed: Packed) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {"numbers": packed.numbers, "places": packed.places, "bits": packed.bits}
        self._at = dict.fromkeys(self._arrays, 0)

    def _next(self, name: str, count: int) -> npt.NDArray[Any]:
        start = self._at[name]
        self._at[name] = start + count
        found = self._arrays[name][start : start + count]
        if len(found) != count:
            raise _misfit(f"{count} more {name}", f"{len(found)}")
        return found

    def tensor(self, entry: dict[str, Any]) -> Tensor:
        shape = entry["shape"]
        size = int(np.prod(shape, dtype=np.int64))
        if entry["form"] == "plain":
            return torch.from_numpy(np.array(self._next("numbers", size))).reshape(shape)
        values = self._next("numbers", entry["filled"])
        result = np.zeros(size, dtype=np.float32)
        if entry["form"] == "listed":
            where: npt.NDArray[Any] = self._next("places", entry["filled"])
        else:
            marks = np.unpackbits(self._next("bits", -(-size // 8)), count=size)
            where = np.flatnonzero(marks)
        if len(where) != len(values) or (len(where) and int(where[-1]) >= size):
            raise _misfit(f"{len(values)} places below {size}", f"{len(where)}")
        result[where] = values
        return torch.from_numpy(result).reshape(shape)

    def places(self, entry: dict[str, Any]) -> Tensor:
        shape: Sequence[int] = entry["shape"]
        return torch.from_numpy(self._next("places", int(np.prod(shape, dtype=np.int64))).astype(np.int64)).reshape(list(shape))

    def finish(self) -> None:
        left = {name: len(array) - self._at[name] for name, array in self._arrays.items()}
        if any(left.values()):
            raise _misfit("nothing left over", str(left))


def _misfit(expected: str, got: str) -> CorruptError:
    return CorruptError(
        "a stored block of features does not fit its layout",
        where="features",
        expected=expected,
        got=got,
        remedy="delete the artifact's folder and run again: only this artifact is computed anew",
    )


def _weight(fields: dict[str, Any]) -> FactoredWeight:
    pairs = {name: tuple(fields[name]) for name in ("shape", "size", "kernel", "stride", "dilation")}
    top, left = fields["padding"]
    return FactoredWeight(**{**fields, **pairs, "padding": (tuple(top), tuple(left))})


def _names(entries: list[list[Any]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(shape)) for name, shape in entries)
