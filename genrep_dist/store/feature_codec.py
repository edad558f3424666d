"""Lossless packing of feature rows into a few flat arrays.

Each tensor takes the smallest of three forms. *dense*: all values. *masked*: one bit per value, and the nonzero values. *sparse*: the
indices of the nonzero values, and these. Activations after a ReLU, gradients before a pooling layer and everything that belongs to
padding are mostly zeros. The gradient of a weight is packed as its factors or as itself, whichever is smaller.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from genrep_dist.core.gradients.embeddings import TokenGradients
from genrep_dist.core.gradients.factored import FactoredGradients
from genrep_dist.core.gradients.factored_weight import FactoredWeight
from genrep_dist.core.gradients.factors import DenseGradients, LayerFactors, WeightGradients
from genrep_dist.core.tensors import numpy_values
from genrep_dist.errors import CorruptError
from genrep_dist.store.feature_table import DTYPES

Array = npt.NDArray[Any]
Names = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class PackedRows:
    """A block: flat ``values`` (float32), ``indices`` (int32), ``masks`` (uint8), and the ``layout`` of tensors in them, as JSON data."""

    values: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    masks: npt.NDArray[np.uint8]
    layout: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes + self.indices.nbytes + self.masks.nbytes + len(self.layout_bytes())

    def layout_bytes(self) -> bytes:
        return json.dumps(self.layout, sort_keys=True, separators=(",", ":")).encode()


@dataclass
class _Writer:
    """Collects the pieces of the flat arrays."""

    pieces: dict[str, list[Array]] = field(default_factory=lambda: {name: [] for name in DTYPES})

    @property
    def num_bytes(self) -> int:
        return sum(piece.nbytes for pieces in self.pieces.values() for piece in pieces)

    def add(self, tensor: Tensor) -> dict[str, Any]:
        """Append a float32 tensor; its layout entry."""
        values: npt.NDArray[np.float32] = np.ascontiguousarray(numpy_values(tensor)).reshape(-1)
        nonzero = np.flatnonzero(values)
        sizes = {"dense": 4 * values.size, "masked": 4 * nonzero.size + -(-values.size // 8), "sparse": 8 * nonzero.size}
        if values.size > np.iinfo(np.int32).max:
            del sizes["sparse"]
        form = min(sizes, key=lambda name: sizes[name])
        self.pieces["values"].append(values if form == "dense" else values[nonzero])
        if form == "masked":
            self.pieces["masks"].append(np.packbits(values != 0))
        elif form == "sparse":
            self.pieces["indices"].append(nonzero.astype(np.int32))
        return {"shape": list(tensor.shape), "form": form, "stored": int(nonzero.size)}

    def add_integers(self, tensor: Tensor) -> dict[str, Any]:
        """Append integers that fit int32; their layout entry."""
        self.pieces["indices"].append(tensor.cpu().numpy().astype(np.int32).reshape(-1))
        return {"shape": list(tensor.shape), "form": "int32s"}

    def extend(self, other: _Writer) -> None:
        for name, pieces in other.pieces.items():
            self.pieces[name] += pieces

    def array(self, name: str) -> Array:
        return np.concatenate([*self.pieces[name], np.empty(0, DTYPES[name])])


def pack(rows: FactoredGradients) -> PackedRows:
    """Pack a block of float32 feature rows."""
    writer = _Writer()
    layout: dict[str, Any] = {
        "rest": writer.add(rows.rest),
        "rest_names": [[name, list(shape)] for name, shape in rows.rest_parameters],
        "order": [[name, list(shape)] for name, shape in rows.parameters],
        "weights": [_pack_weight(writer, weight, factor) for weight, factor in zip(rows.weights, rows.factors, strict=True)],
    }
    return PackedRows(**{name: writer.array(name) for name in DTYPES}, layout=layout)


def _pack_weight(writer: _Writer, weight: FactoredWeight, factor: WeightGradients) -> dict[str, Any]:
    entry: dict[str, Any] = {"weight": asdict(weight)}
    if isinstance(factor, TokenGradients):
        integers = {"tokens": writer.add_integers(factor.tokens), "counts": writer.add_integers(factor.counts)}
        return {**entry, "form": "tokens", **integers, "values": writer.add(factor.values)}
    if isinstance(factor, DenseGradients):
        return {**entry, "form": "gradient", "values": writer.add(factor.values)}
    factors = _Writer()
    parts = {"inputs": factors.add(_mask_unused_inputs(weight, factor)), "gradients": factors.add(factor.gradients)}
    rows, num_outputs = factor.gradients.shape[:2]
    if weight.product_form == "gradients" and 4 * rows * num_outputs * weight.numel <= factors.num_bytes:
        # In the order in which it is multiplied, so that it equals a gradient that is formed from factors.
        return {**entry, "form": "gradient", "values": writer.add(DenseGradients.from_factors(weight, factor).values)}
    writer.extend(factors)
    return {**entry, "form": "factors", **parts}


def _mask_unused_inputs(weight: FactoredWeight, factor: LayerFactors) -> Tensor:
    """The inputs (B, H, W, I), set to zero where no output position has a gradient. This changes no product."""
    used = (factor.gradients != 0).any(dim=3).any(dim=1)
    if bool(used.all()):
        return factor.inputs
    rows, height, width, _ = factor.inputs.shape
    (top, bottom), (left, right) = weight.padding
    mask = used.new_zeros(rows, height + top + bottom, width + left + right)
    grid = used.view(rows, *weight.output_size)
    (stride_h, stride_w), (grid_h, grid_w) = weight.stride, weight.output_size
    for tap_h in range(weight.kernel[0]):
        for tap_w in range(weight.kernel[1]):
            first_h, first_w = tap_h * weight.dilation[0], tap_w * weight.dilation[1]
            window = mask[:, first_h : first_h + stride_h * grid_h : stride_h, first_w : first_w + stride_w * grid_w : stride_w]
            window[:, :grid_h, :grid_w] |= grid
    return factor.inputs * mask[:, top : top + height, left : left + width].unsqueeze(3)


def unpack(packed: PackedRows) -> FactoredGradients:
    """The inverse of :func:`pack`. CorruptError for arrays that do not match their layout."""
    reader = _Reader(packed)
    layout = packed.layout
    rest = reader.tensor(layout["rest"])
    weights = tuple(_read_weight(entry["weight"]) for entry in layout["weights"])
    factors = tuple(_unpack_factors(reader, entry) for entry in layout["weights"])
    reader.finish()
    return FactoredGradients(weights, factors, rest, _read_names(layout["rest_names"]), _read_names(layout["order"]))


def _unpack_factors(reader: _Reader, entry: dict[str, Any]) -> WeightGradients:
    if entry["form"] == "tokens":
        tokens, counts = reader.integers(entry["tokens"]), reader.integers(entry["counts"])
        return TokenGradients(tokens, reader.tensor(entry["values"]), counts)
    if entry["form"] == "gradient":
        return DenseGradients(reader.tensor(entry["values"]))
    return LayerFactors(reader.tensor(entry["inputs"]), reader.tensor(entry["gradients"]))


class _Reader:
    """Reads the flat arrays from the front."""

    def __init__(self, packed: PackedRows) -> None:
        self._arrays: dict[str, Array] = {name: getattr(packed, name) for name in DTYPES}
        self._position = dict.fromkeys(DTYPES, 0)

    def _next(self, name: str, count: int) -> Array:
        start = self._position[name]
        self._position[name] = start + count
        found = self._arrays[name][start : start + count]
        if len(found) != count:
            raise _mismatch(f"{count} more {name}", f"{len(found)}")
        return found

    def tensor(self, entry: dict[str, Any]) -> Tensor:
        shape: list[int] = entry["shape"]
        size = int(np.prod(shape, dtype=np.int64))
        if entry["form"] == "dense":
            return torch.from_numpy(np.array(self._next("values", size))).reshape(shape)
        values = self._next("values", entry["stored"])
        if entry["form"] == "sparse":
            where = self._next("indices", entry["stored"])
        else:
            where = np.flatnonzero(np.unpackbits(self._next("masks", -(-size // 8)), count=size))
        if len(where) != len(values) or (len(where) and int(where[-1]) >= size):
            raise _mismatch(f"{len(values)} indices below {size}", f"{len(where)}")
        result = np.zeros(size, dtype=np.float32)
        result[where] = values
        return torch.from_numpy(result).reshape(shape)

    def integers(self, entry: dict[str, Any]) -> Tensor:
        shape: list[int] = entry["shape"]
        return torch.from_numpy(self._next("indices", int(np.prod(shape, dtype=np.int64))).astype(np.int64)).reshape(shape)

    def finish(self) -> None:
        left = {name: len(array) - self._position[name] for name, array in self._arrays.items()}
        if any(left.values()):
            raise _mismatch("nothing left over", str(left))


def _mismatch(expected: str, got: str) -> CorruptError:
    return CorruptError(
        "a stored block of features does not match its layout",
        where="features",
        expected=expected,
        got=got,
        remedy="delete the artifact's folder and run again: only this artifact is recomputed",
    )


def _read_weight(fields: dict[str, Any]) -> FactoredWeight:
    pairs = {name: tuple(fields[name]) for name in ("shape", "size", "kernel", "stride", "dilation")}
    top, left = fields["padding"]
    return FactoredWeight(**{**fields, **pairs, "padding": (tuple(top), tuple(left))})


def _read_names(entries: list[list[Any]]) -> Names:
    return tuple((name, tuple(shape)) for name, shape in entries)
