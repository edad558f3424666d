"""Inputs of several tensors, as a dictionary, tuple or dataclass holds them: rows of bytes in one tensor, unpacked where a model is called.

Code that gathers, moves and stores rows treats packed inputs as any other tensor (N, ...). A model is called by :func:`call_model`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from genrep_dist.core.tensors import NUMPY_FLOATS
from genrep_dist.errors import ProblemError

ALIGNMENT = 8
"""Bytes of which the length of a row is a multiple, so that a tensor of any dtype can look at its part of a row."""


@dataclass(frozen=True)
class InputField:
    """One tensor of the inputs: its ``place`` in them, the ``dtype`` and ``shape`` of a sample, and the first byte in a row."""

    place: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class InputForm:
    """How inputs are packed: their tensors, and the containers that hold them.

    ``structure``: a field's number; ``("dict", ((key, structure), ...))``; ``("tuple" or "list", (structure, ...))``; or, for a dataclass
    or a named tuple, ``("module:Class", ((name, structure), ...))``.
    """

    fields: tuple[InputField, ...]
    structure: Any

    @cached_property
    def row_bytes(self) -> int:
        last = max(self.fields, key=lambda one: one.start)
        return _aligned(last.start + last.num_bytes, ALIGNMENT)

    def to_record(self) -> dict[str, Any]:
        """Plain data, from which :meth:`from_record` makes an equal object."""
        parts = [[one.place, str(one.dtype).removeprefix("torch."), list(one.shape), one.start] for one in self.fields]
        return {"fields": parts, "structure": _listed(self.structure)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> InputForm:
        """The form that :meth:`to_record` described. KeyError, TypeError or ValueError for anything else."""
        parts = []
        for place, name, shape, start in record["fields"]:
            dtype = getattr(torch, name, None)
            if not isinstance(dtype, torch.dtype):
                raise TypeError(f"{name!r} is no dtype")
            parts.append(InputField(str(place), dtype, tuple(map(int, shape)), int(start)))
        return cls(tuple(parts), _tupled(record["structure"]))

    def leaves(self, rows: Tensor) -> list[Tensor]:
        """The tensors (B, *shape) of ``rows`` (B, row_bytes), as copies."""
        plain = rows.as_subclass(Tensor)
        parts = (plain[:, one.start : one.start + one.num_bytes].clone(memory_format=torch.contiguous_format) for one in self.fields)
        return [part.view(one.dtype).reshape(len(plain), *one.shape) for one, part in zip(self.fields, parts, strict=True)]

    def build(self, leaves: Sequence[Any]) -> Any:
        """The inputs that hold ``leaves``, one for each field."""
        return _built(self.structure, leaves)

    def arguments(self, leaves: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a model is called with: the keys of a dictionary as keywords, the entries of a tuple or list in order, else one object."""
        inputs = self.build(leaves)
        if isinstance(inputs, dict):
            return (), inputs
        return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})

    def pack(self, inputs: Any) -> PackedInputs:
        """Inputs of this form as rows. ProblemError for inputs of another one."""
        found = pack_inputs(inputs)
        if found.form != self:
            raise ProblemError(
                "inputs differ in form from those of the training set", where="inputs", expected=describe(self), got=describe(found.form)
            )
        return found


class PackedInputs(Tensor):
    """Rows (N, row_bytes) uint8 of inputs of one :class:`InputForm`, or one row (row_bytes,).

    Rows that are selected, moved or joined keep the form; anything else that is computed is a plain tensor.
    """

    form: InputForm

    @classmethod
    def of(cls, rows: Tensor, form: InputForm) -> PackedInputs:
        """``rows`` (..., row_bytes) uint8, without a copy."""
        packed = rows.as_subclass(cls)
        packed.form = form
        return packed

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function of plain tensors; its results keep the form of the first packed argument where they are whole rows."""
        result = Tensor.__torch_function__(func, (Tensor,), args, kwargs or {})  # type: ignore[no-untyped-call]
        if func is Tensor.as_subclass or not isinstance(result, Tensor | tuple | list):
            return result
        form = next(_forms(args), None)
        if form is None:
            return result
        if isinstance(result, Tensor):
            return _with_form(result, form)
        return type(result)(_with_form(one, form) for one in result) if type(result) in (tuple, list) else result

    def __deepcopy__(self, memo: Any) -> PackedInputs:
        return PackedInputs.of(self.as_subclass(Tensor).clone(), self.form)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PackedInputs.of, (self.as_subclass(Tensor), self.form)


def _forms(args: Any) -> Iterator[InputForm]:
    for one in args:
        if isinstance(one, PackedInputs):
            yield one.__dict__["form"]
        elif isinstance(one, tuple | list):
            yield from _forms(one)


def _with_form(result: Any, form: InputForm) -> Any:
    """``result`` with ``form`` if it is one row of it, or several."""
    whole = isinstance(result, Tensor) and result.dtype == torch.uint8 and result.dim() > 0 and result.shape[-1] == form.row_bytes
    return PackedInputs.of(result, form) if whole and not isinstance(result, PackedInputs) else result


def pack_inputs(inputs: Any) -> PackedInputs:
    """Dense CPU tensors with one first dimension, in dictionaries, tuples, lists and dataclasses, as rows.

    Raises ProblemError, with the place, for anything else that is among them.
    """
    places: list[tuple[str, Tensor]] = []
    structure = _structure(inputs, "inputs", places)
    if not places:
        raise ProblemError("the inputs hold no tensor", where="inputs", expected="at least one tensor (N, ...)", got=repr(inputs)[:80])
    lengths = {place: len(tensor) if tensor.dim() else 0 for place, tensor in places}
    if len(set(lengths.values())) != 1 or not all(tensor.dim() for _, tensor in places):
        raise ProblemError(
            "the tensors of the inputs differ in length",
            where=", ".join(lengths),
            expected="tensors whose first dimension is the sample",
            got=", ".join(f"{place}: {tuple(tensor.shape)}" for place, tensor in places),
            remedy="repeat what all samples share for each of them, or keep it in the model as a buffer",
        )
    start, parts = 0, []
    for place, tensor in places:
        start = _aligned(start, tensor.dtype.itemsize)
        parts.append(InputField(place, tensor.dtype, tuple(tensor.shape[1:]), start))
        start += parts[-1].num_bytes
    form = InputForm(tuple(parts), structure)
    rows = torch.zeros(len(places[0][1]), form.row_bytes, dtype=torch.uint8)
    for part, (_, tensor) in zip(form.fields, places, strict=True):
        values = tensor.detach().contiguous().reshape(len(tensor), math.prod(part.shape))
        rows[:, part.start : part.start + part.num_bytes] = values.view(torch.uint8)
    return PackedInputs.of(rows, form)


def form_of(inputs: Tensor) -> InputForm | None:
    """The form of packed inputs; None for a plain tensor."""
    return inputs.form if isinstance(inputs, PackedInputs) else None


def unpacked(inputs: Tensor) -> Any:
    """Inputs (B, ...) as a problem gave them: packed rows as their dictionary, tuple or dataclass, any other tensor as it is."""
    form = form_of(inputs)
    return inputs if form is None else form.build(form.leaves(inputs))


def unpacked_row(row: Tensor) -> Any:
    """One row (...) of inputs as a problem gives it, its tensors without the sample's dimension."""
    form = form_of(row)
    return row if form is None else form.build([leaf[0] for leaf in form.leaves(row.unsqueeze(0))])


def packed_row(row: Any, form: InputForm) -> PackedInputs:
    """The row of :func:`unpacked_row` as (row_bytes,). ProblemError for one of another form."""
    places: list[tuple[str, Tensor]] = []
    structure = _structure(row, "inputs", places)
    leaves = [tensor.unsqueeze(0) for _, tensor in places]
    return PackedInputs.of(form.pack(_built(structure, leaves))[0], form)


def input_leaves(inputs: Tensor) -> list[Tensor]:
    """The tensors (B, ...) that a model's inputs consist of: one for a plain tensor."""
    form = form_of(inputs)
    return [inputs] if form is None else form.leaves(inputs)


def call_arguments(leaves: Sequence[Tensor], form: InputForm | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model is called with, of the ``leaves`` of inputs of a form."""
    return ((leaves[0],), {}) if form is None else form.arguments(leaves)


def call_model(model: nn.Module, inputs: Tensor) -> object:
    """``model(inputs)``; of packed inputs model(**dictionary), model(*tuple) or model(dataclass)."""
    if not isinstance(inputs, PackedInputs):
        return model(inputs)
    args, kwargs = inputs.form.arguments(inputs.form.leaves(inputs))
    return model(*args, **kwargs)


def map_leaves(inputs: Any, function: Callable[[Any], Tensor]) -> Any:
    """The containers of ``inputs`` with ``function(leaf)`` in the place of what is none of them, in their order."""
    if isinstance(inputs, Mapping):
        return {key: map_leaves(item, function) for key, item in inputs.items()}
    names = _names(inputs)
    if names is not None:
        return type(inputs)(**{name: map_leaves(getattr(inputs, name), function) for name in names})
    if isinstance(inputs, tuple | list):
        return type(inputs)(map_leaves(item, function) for item in inputs)
    return function(inputs)


def in_dtype(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """``inputs`` with their floating-point numbers in ``dtype``; other numbers stay."""
    form = form_of(inputs)
    if form is None:
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    leaves = [leaf.to(dtype) if leaf.is_floating_point() else leaf for leaf in form.leaves(inputs)]
    packed = pack_inputs(form.build([leaf.cpu() for leaf in leaves]))
    return packed.to(inputs.device)


def describe(form: InputForm) -> str:
    """The dtypes and shapes of a form's tensors by place, for messages."""
    return ", ".join(f"{one.place}: {one.dtype} ({', '.join(map(str, ('N', *one.shape)))})" for one in form.fields)


def _aligned(start: int, size: int) -> int:
    return -(-start // size) * size


def _structure(value: Any, place: str, found: list[tuple[str, Tensor]]) -> Any:
    """The structure of a value; its tensors go to ``found``."""
    if isinstance(value, Tensor):
        _check_dense(value, place)
        found.append((place, value))
        return len(found) - 1
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ("dict", tuple((key, _structure(item, f"{place}[{key!r}]", found)) for key, item in value.items()))
    names = _names(value)
    if names is not None:
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return (kind, tuple((name, _structure(getattr(value, name), f"{place}.{name}", found)) for name in names))
    if isinstance(value, tuple | list):
        items = tuple(_structure(item, f"{place}[{number}]", found) for number, item in enumerate(value))
        return ("tuple" if isinstance(value, tuple) else "list", items)
    raise ProblemError(
        "the inputs hold something else than tensors",
        where=place,
        expected="a tensor (N, ...), or a dictionary with names as keys, a tuple, list or dataclass of them",
        got=type(value).__name__,
        remedy="convert it with torch.as_tensor, leave it out, or keep it in the model",
    )


def _names(value: Any) -> tuple[str, ...] | None:
    """The fields of a named tuple or a dataclass; None for anything else."""
    if is_dataclass(value) and not isinstance(value, type):
        return tuple(part.name for part in fields(value))
    return getattr(value, "_fields", None) if isinstance(value, tuple) else None


def _check_dense(tensor: Tensor, place: str) -> None:
    fine = tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu" and not tensor.is_quantized
    if not fine or tensor.requires_grad or 0 in tensor.shape[1:]:
        raise ProblemError(
            "the inputs must be plain tensors on the CPU; training moves them to its device",
            where=place,
            expected="dense CPU tensors without requires_grad and without empty samples",
            got=f"{tensor.layout}{' (nested)' * tensor.is_nested} {tuple(() if tensor.is_nested else tensor.shape)} on {tensor.device}, "
            f"requires_grad={tensor.requires_grad}",
            remedy="pad samples of several lengths with genrep_dist.pad_rows; else detach(), to_dense(), cpu()",
        )
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in NUMPY_FLOATS):
        raise ProblemError(
            "the inputs have a dtype that cannot be stored",
            where=place,
            expected="integers, bool, float16, float32 or float64",
            got=str(tensor.dtype),
            remedy="torch.view_as_real(tensor): two real numbers for each complex one" if tensor.is_complex() else "tensor.float()",
        )


def _built(structure: Any, leaves: Sequence[Any]) -> Any:
    if isinstance(structure, int):
        return leaves[structure]
    kind, items = structure
    if kind == "dict":
        return {key: _built(item, leaves) for key, item in items}
    if kind in ("tuple", "list"):
        built = (_built(item, leaves) for item in items)
        return tuple(built) if kind == "tuple" else list(built)
    return _container(kind)(**{name: _built(item, leaves) for name, item in items})


def _container(name: str) -> Any:
    """A dataclass or named tuple, by its name, of a module that is imported already: a file of data makes nothing be imported."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not (is_dataclass(found) or hasattr(found, "_fields")):
        raise ProblemError(
            "the class of the inputs is not defined here",
            where=name,
            expected="a dataclass of an imported module",
            got="none of this name",
            remedy="define it at the top of the problem's module",
        )
    return found


def _listed(structure: Any) -> Any:
    return [_listed(one) for one in structure] if isinstance(structure, tuple) else structure


def _tupled(structure: Any) -> Any:
    return tuple(_tupled(one) for one in structure) if isinstance(structure, list) else structure
