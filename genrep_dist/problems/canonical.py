"""Canonical texts of Python values: equal in all processes, whatever the hash seed, the memory addresses and the order of sets."""

from __future__ import annotations

import copyreg
import hashlib
import math
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from genrep_dist.problems.sources import is_users_file

_PIECE = 2**20
_DEPTH = 60
_EVERY_MODULE_HAS = frozenset({*nn.Module().__dict__, "_compiled_call_impl", "_is_torch_compile"})


class ValueSummary(NamedTuple):
    """The numbers of a tensor or array: ``digest`` of their bits, the sum of ``magnitudes`` and the sum ``weighted`` by position (0 to 1).

    The sums are float64, over finite numbers. ``tolerance``, relative to ``magnitudes``, is what rounding on another machine may change.
    """

    digest: str
    magnitudes: float
    weighted: float
    tolerance: float

    def agrees(self, other: ValueSummary) -> bool:
        """Whether both are equal up to rounding."""
        if self.digest == other.digest:
            return True
        limit = self.tolerance * max(abs(self.magnitudes), abs(other.magnitudes))
        return abs(self.magnitudes - other.magnitudes) <= limit and abs(self.weighted - other.weighted) <= limit


def summarize(values: Tensor | np.ndarray[Any, Any] | float) -> ValueSummary:
    """The summary of a tensor, an array of numbers or a float; of whatever layout, dtype and device. Takes a few MB."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    tensor = tensor.detach()
    tensor = (tensor.dequantize() if tensor.is_quantized else tensor.to_dense() if tensor.layout != torch.strided else tensor).cpu()
    tensor = tensor.resolve_conj().resolve_neg()
    kind = f"{tensor.dtype} {tuple(tensor.shape)}"
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    digest, magnitudes, weighted, start = hashlib.sha256(kind.encode()), 0.0, 0.0, 0
    for piece in torch.split(flat, _PIECE):
        digest.update(piece.contiguous().view(torch.uint8).numpy().data)
        numbers = piece.double().nan_to_num(0.0, 0.0, 0.0)
        magnitudes += float(numbers.abs().sum())
        weighted += float(numbers @ torch.arange(start + 1, start + len(piece) + 1, dtype=torch.float64)) / max(len(flat), 1)
        start += len(piece)
    precision = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0
    return ValueSummary(digest.hexdigest(), magnitudes, weighted, 0.0 if precision == 0 else 1e-5 if precision < 1e-6 else 1e-2)


class Canonical:
    """Collects the canonical texts of values.

    Tensors, arrays and floats that are no short decimals are computed or drawn numbers, whose last bits may differ between machines: the
    texts have only their dtype and shape, and :attr:`values` their summaries by place. :attr:`modules` are the names of the modules of
    all classes and functions that were met. ``known``: texts of objects that are described elsewhere, by id.
    """

    def __init__(self, known: Mapping[int, str] | None = None) -> None:
        self.values: dict[str, ValueSummary] = {}
        self.modules: set[str] = set()
        self._known = known or {}
        self._done: dict[int, tuple[object, str]] = {}
        self._open: list[int] = []

    def text(self, value: object, place: str | None) -> str:
        """The text of ``value``. Numbers without a ``place`` (in sets and keys) are digested into the text."""
        if value is None or value is Ellipsis or type(value) in (bool, int, str, bytes, complex, range, slice):
            return f"{type(value).__name__} {value!r}"
        if isinstance(value, Enum):
            return f"{self._path(type(value))}.{value.name}"
        if type(value) is float:
            # Such as 0.1 and 1e-05: written by hand.
            return f"float {value!r}" if float(f"{value:.6g}") == value or math.isnan(value) else self._numbers(value, place)
        if isinstance(value, np.generic) and not isinstance(value, np.void):
            return f"{value.dtype} {self.text(value.item(), place)}"
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
            return self._numbers(value, place)
        if isinstance(value, PurePath):
            return "path"  # where files are changes no number
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, type):
            return f"class {self._path(value)}"
        if id(value) in self._known:
            return self._known[id(value)]
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:
            return f"cycle {len(self._open) - self._open.index(id(value))}"
        if len(self._open) > _DEPTH:
            return f"below {_DEPTH} others: {self._path(type(value))}"
        self._open.append(id(value))
        try:
            text = self._compound(value, place)
        finally:
            self._open.pop()
        # The object is kept, so that its id stays its own.
        self._done[id(value)] = value, text
        return text

    def module_attributes(self, module: nn.Module, place: str) -> dict[str, str]:
        """The class of a module and its own attributes, by name: neither parameters, buffers, submodules nor hooks."""
        if isinstance(module, torch.jit.ScriptModule):
            return {"class": "scripted", "name": str(module.original_name), "code": _script(module)}
        if _is_compiled(module):
            return {"class": "compiled"}
        own = {name: value for name, value in vars(module).items() if name not in _EVERY_MODULE_HAS}
        texts = {f"attribute {name}": self.text(own[name], f"{place} attribute {name}") for name in sorted(own)}
        return {"class": self._path(type(module)), **texts}

    def _compound(self, value: object, place: str | None) -> str:
        if type(value) in (dict, OrderedDict, types.MappingProxyType):
            assert isinstance(value, Mapping)
            items = sorted(((self.text(key, None), key) for key in value), key=lambda item: item[0])
            return f"{type(value).__name__} {{{', '.join(f'{text}: {self.text(value[key], _at(place, key))}' for text, key in items)}}}"
        if type(value) in (list, tuple):
            assert isinstance(value, list | tuple)
            return f"[{', '.join(self.text(item, _at(place, index)) for index, item in enumerate(value))}]"
        if isinstance(value, set | frozenset):
            return f"{self._path(type(value))} {{{', '.join(sorted(self.text(item, None) for item in value))}}}"
        if isinstance(value, nn.Module):
            return self._module(value, place)
        if isinstance(value, torch.jit.ScriptFunction):
            return f"scripted {value.name} {value.code}"
        if isinstance(value, types.MethodType):
            return f"method {value.__name__} of {self.text(value.__self__, place)}: {self.text(value.__func__, place)}"
        if isinstance(value, types.FunctionType):
            # By torch.compile.
            original = getattr(value, "_torchdynamo_orig_callable", None)
            return self._function(value, place) if original is None else self.text(original, place)
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, types.ModuleType | type(None)):
            return f"function {value.__module__}:{value.__qualname__}"
        if isinstance(value, torch.Generator):
            return f"generator {value.initial_seed()}"
        return self._object(value, place)

    def _module(self, module: nn.Module, place: str | None) -> str:
        parts = [f"{key}={text}" for key, text in self.module_attributes(module, place or type(module).__name__).items()]
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            parts.append(f"{name}={self.text(tensor, _at(place, name))}")
        children = [f"{name}={self.text(child, _at(place, name))}" for name, child in module.named_children()]
        return f"module {{{', '.join(parts + children)}}}"

    def _function(self, function: types.FunctionType, place: str | None) -> str:
        """By its module and name and what it closes over; one of the user also by its defaults and what its code names and holds."""
        self.modules.add(function.__module__ or "")
        name, held, code = f"{function.__module__}:{function.__qualname__}", closure(function), ""
        from_file = Path(function.__code__.co_filename).is_file()
        if not from_file or is_users_file(function.__code__.co_filename):
            held |= {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
            code = code_text(function.__code__, with_instructions=not from_file)
        texts = [f"{key}={self.text(value, _at(place, key))}" for key, value in held.items() if value is not None]
        return f"function {name} ({', '.join(texts)}) {code}"

    def _object(self, value: object, place: str | None) -> str:
        """By what `pickle` would store, else by its class and attributes, else by its class."""
        path = self._path(type(value))
        try:
            reduced: Any = value.__reduce_ex__(4)
        except Exception:
            attributes = getattr(value, "__dict__", {})
            return f"object {path} {self.text(dict(attributes), place)}" if attributes else f"object {path}"
        if isinstance(reduced, str):
            return f"object {path} {reduced}"
        maker, arguments, *rest = reduced
        made = "" if maker in (copyreg.__newobj__, copyreg._reconstructor) else self.text(maker, None)  # type: ignore[attr-defined]
        contents = [arguments, *(list(part) if isinstance(part, Iterator) else part for part in rest[:3])]
        texts = [self.text(part, place) for part in contents if part is not None]
        return f"object {path} {made}({', '.join(texts)})"

    def _numbers(self, values: Tensor | np.ndarray[Any, Any] | float, place: str | None) -> str:
        if isinstance(values, Tensor) and (is_lazy(values) or values.is_meta):
            return f"{values.dtype} without values"
        kind = "float" if isinstance(values, float) else f"{values.dtype} {tuple(values.shape)}"
        if isinstance(values, nn.Parameter):
            kind += " trained" if values.requires_grad else " frozen"
        found = summarize(values)
        if place is None:
            return f"{kind} {found.digest}"
        self.values[place] = found
        return kind

    def _path(self, kind: type) -> str:
        self.modules.add(kind.__module__)
        return f"{kind.__module__}:{kind.__qualname__}"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was called on, or the given one."""
    original = getattr(model, "_orig_mod", None)
    return original if _is_compiled(model) and isinstance(original, nn.Module) else model


def code_text(code: types.CodeType, *, with_instructions: bool = True) -> str:
    """Names and constants of a function's code, and its instructions, which differ between versions of Python."""
    constants = [_constant(value, with_instructions) for value in code.co_consts]
    instructions = hashlib.sha256(code.co_code).hexdigest() if with_instructions else ""
    return f"{code.co_name} {code.co_names} {code.co_varnames} [{', '.join(constants)}] {instructions}"


def closure(function: types.FunctionType) -> dict[str, object]:
    """What a function closes over, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells if _is_filled(cell)}


def short(text: str) -> str:
    """The text, or its sha256 if it is long."""
    return text if len(text) <= 200 else hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


def _constant(value: object, with_instructions: bool) -> str:
    if isinstance(value, types.CodeType):
        return code_text(value, with_instructions=with_instructions)
    if isinstance(value, tuple):
        return f"({', '.join(_constant(item, with_instructions) for item in value)})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(_constant(item, with_instructions) for item in value))}}}"
    return f"{type(value).__name__} {value!r}"


def _at(place: str | None, key: object) -> str | None:
    if place is None:
        return None
    return f"{place}.{key}" if isinstance(key, str | int) else f"{place}.{type(key).__name__}"


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__module__ == "torch._dynamo.eval_frame"


def _script(module: torch.jit.ScriptModule) -> str:
    """The code of a scripted module with its constants; a module without a method has none."""
    try:
        code, constants = module.code_with_constants
    except RuntimeError:
        return ""
    return f"{code} {sorted((name, str(value)) for name, value in vars(constants).get('const_mapping', {}).items())}"
