"""What defines a problem, a kernel or another extension: its identity, which enters content addresses and which workers compare."""

from __future__ import annotations

import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from genrep_dist.config.digests import is_plain, json_digest, non_default_fields
from genrep_dist.core.gradients.model import require_initialized
from genrep_dist.core.losses import get_loss
from genrep_dist.errors import ProblemError
from genrep_dist.problems.canonical import Canonical, ValueSummary, short, unwrapped
from genrep_dist.problems.checks import build_start, is_shipped
from genrep_dist.problems.functions import predict_function, problem_recipe, training_function
from genrep_dist.problems.live_code import LiveCode
from genrep_dist.problems.protocol import Problem, Recipe, augment_name
from genrep_dist.problems.sources import class_source, loaded_sources, user_sources

_NOT_THE_USERS_OWN = {"abc", "builtins", "collections", "dataclasses", "enum", "torch", "typing"}


@dataclass(frozen=True)
class Identity:
    """What distinguishes a problem, a kernel or an extension from another.

    ``files``: digests of source files, by module. ``form``: canonical texts, or their digests, by place: classes and attributes of
    layers, names, shapes and dtypes of tensors, options, constants. ``computed``: constants that may differ between machines.
    ``values``: the numbers of tensors, by place.

    Keys depend on all of it. On another machine, ``files`` and ``form`` must be equal, ``values`` up to rounding.
    """

    files: dict[str, str] = field(default_factory=dict)
    form: dict[str, str] = field(default_factory=dict)
    computed: dict[str, str] = field(default_factory=dict)
    values: dict[str, ValueSummary] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Digest of what must be equal on all machines."""
        return json_digest([self.files, self.form])

    @property
    def numbers(self) -> str:
        """Digest of all other parts: the bits of tensors, and computed constants."""
        return json_digest([self.computed, {place: values.digest for place, values in self.values.items()}])

    @property
    def digest(self) -> str:
        """Digest of all parts."""
        return json_digest([self.source, self.numbers])

    def to_record(self) -> dict[str, Any]:
        """Plain data, from which :meth:`from_record` makes an equal object."""
        return asdict(self) | {"values": {place: list(values) for place, values in self.values.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Identity:
        """The object that :meth:`to_record` described."""
        return cls(**{**record, "values": {place: ValueSummary(*values) for place, values in record["values"].items()}})

    def changes(self, earlier: Identity) -> list[str]:
        """The files and places where this identity differs from an ``earlier`` one."""
        texts = _differences(self.form | self.computed, earlier.form | earlier.computed, operator.eq)
        return self._paths(earlier) + texts + _differences(self.values, earlier.values, operator.eq)

    def _paths(self, other: Identity) -> list[str]:
        """The files that differ; the name of a module that is not imported here."""
        names = _differences(self.files, other.files, operator.eq)
        return [getattr(sys.modules.get(name), "__file__", None) or f"module {name}, which is not imported here" for name in names]

    def require_equal(self, expected: Identity, where: str, *, one_machine: bool) -> None:
        """Raise ProblemError, naming what differs, unless this is the driver's (``expected``) identity as found on a worker."""
        names = _differences(self.files, expected.files, operator.eq)
        found = [name for name in names if name in self.files and name in expected.files]
        if found:
            raise ProblemError(
                "a source file differs from the one that the driver imported",
                where=f"{where}: {', '.join(self._paths(expected))}",
                expected=f"source digest {expected.files.get(found[0])}",
                got=str(self.files.get(found[0])),
                remedy="the file has changed since the driver imported it: run again"
                if one_machine
                else "give all machines the same code (ray job submit --working-dir)",
            )
        found = _differences(self.form, expected.form, operator.eq)
        if names or found:
            raise ProblemError(
                "this worker's copy of the code differs from the driver's",
                where=f"{where}: {', '.join([*found, *self._paths(expected)][:5])}",
                expected=str(expected.form.get(found[0])) if found else "the modules that the driver uses",
                got=str(self.form.get(found[0])) if found else f"others: {', '.join(names)}",
                remedy="change constants, classes and functions in their files, not in the running process, and let attributes not depend "
                "on what changes from process to process (time, process id, environment)",
            )
        found = _differences(self.values, expected.values, ValueSummary.agrees)
        if found:
            raise ProblemError(
                "the source is the driver's, but numbers that it loads or draws are not",
                where=f"{where}: {', '.join(found[:5])}",
                expected=str(expected.values.get(found[0])),
                got=str(self.values.get(found[0])),
                remedy="seed what is drawn outside model(), and leave files that are loaded unchanged while a run goes on"
                + ("" if one_machine else "; give all machines the same files"),
            )


def problem_identity(problem: Problem, options: Mapping[str, Any] | None = None, name: str = "", *, check_build: bool = True) -> Identity:
    """The identity of a problem's model and loss, of the classes that make them, and of all files of the user that these import.

    The model is built with the random numbers of seed 0. ``name``: the problem's name in the experiment, of which the module counts
    too. Call it before data are loaded, as a problem may keep them in its attributes. With ``check_build`` the model is built twice:
    ProblemError if both differ or share a module or parameters.

    Left out: options that are file locations (the problem's ``path_options``) and, for shipped problems, options with their default
    value, so that experiments with and without them share models. Data and recipe have separate digests. ProblemError if a class has no
    source file, or if a file was edited since it was imported.
    """
    loss, shipped = get_loss(problem.loss), type(problem).__module__.partition(".")[0] == "genrep_dist"
    # Before models are built and data are loaded, which may change the problem's attributes.
    held = Canonical()
    tensors = () if shipped or not _has_vars(problem) else _tensors(vars(problem), "problem", set())
    own = {f"numbers of {place}": held.text(value, place) for place, value in tensors}
    model = build_start(problem)
    if isinstance(model, nn.Module):
        require_initialized(model)
    found, form = _describe_model(problem, model)
    if check_build:
        other = build_start(problem)
        if isinstance(model, nn.Module) and isinstance(other, nn.Module):
            _require_own_parts(model, other)
        _require_equal_builds((form, found.values), _describe_model(problem, other))
        del other
    form["loss"] = loss.name
    if not is_shipped(loss):
        form |= _describe_attributes(found, loss, "loss")
    recipe = problem_recipe(problem)
    if type(recipe) is not Recipe:
        # The experiment may replace fields, which are in the keys with their values in force, where these are plain data.
        form |= _describe_attributes(found, recipe, "recipe", leave_out=plain_fields(recipe))
    for what, own_code in (("train", training_function(problem)), ("predict", predict_function(problem))):
        # A method stands in the file of the class. A function that is set as an attribute may stand anywhere.
        if own_code is not None and getattr(own_code, "__self__", None) is not problem:
            form[f"function {what}"] = found.text(own_code, f"function {what}")
    if training_function(problem) is not None:
        form |= _describe_class(found, type(problem))
    form |= own
    found.values |= held.values
    hidden, defaults = set(getattr(problem, "path_options", ())), _defaults(problem) if shipped else {}
    for key, value in (options or {}).items():
        if key not in hidden and (text := found.text(value, None)) != defaults.get(key):
            form[f"option {key}"] = text
    parts = unwrapped(model).modules() if isinstance(model, nn.Module) else ()
    made = dict.fromkeys(base for kind in (type(problem), *map(type, parts)) for base in kind.__mro__ if _is_own(base))
    kinds = [*made, *_bases_outside(type(loss)), *_bases_outside(type(recipe))]
    identity = _identity(found, form, kinds, [name.partition(":")[0]] if ":" in name else [])
    # The start of a shipped model follows from its files and options: without last bits its key is the same on all machines.
    return replace(identity, values={}) if shipped else identity


def plain_fields(recipe: Recipe) -> set[str]:
    """The names of a recipe's fields that its record and its keys hold: those of :class:`Recipe`, and plain data of a subclass."""
    own = {part.name for part in fields(Recipe)}
    return {part.name for part in fields(recipe) if part.name in own or is_plain(getattr(recipe, part.name))}


def recipe_values(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """All fields of a recipe as plain data, for records, and those that differ from their defaults, for keys.

    A field of a subclass that is no plain data is a text in the first, and left out of the second: it is in the problem's identity.
    """
    record, plain = recipe.record(), plain_fields(recipe)
    added = {part.name: getattr(recipe, part.name) for part in fields(recipe) if part.name not in record}
    record |= {name: value if name in plain else short(Canonical().text(value, None)) for name, value in added.items()}
    changes = non_default_fields(replace(recipe, augment=augment_name(recipe.augment)), leave_out=added.keys() - plain)
    return record, changes


def source_digest(problem: Problem, options: Mapping[str, Any] | None = None) -> str:
    """sha256 of the files and the form of a problem. Equal in every process, folder and machine; :func:`problem_identity` says of what."""
    return problem_identity(problem, options).source


def object_identity(built: object, options: Mapping[str, Any] | None = None) -> Identity:
    """The identity of an object: of its class, its attributes and its options."""
    found = Canonical()
    form = _describe_attributes(found, built, "object") if _has_vars(built) else {"object": found.text(built, "object")}
    form |= {f"option {key}": found.text(value, None) for key, value in (options or {}).items()}
    return _identity(found, form, _bases_outside(type(built)), [getattr(built, "__module__", None) or ""])


def class_identity(kind: type, *, needs_file: bool = True) -> Identity:
    """The identity of a class and of its bases. ProblemError if one has no source file and ``needs_file``."""
    return _identity(Canonical(), {}, _bases_outside(kind), [], needs_file=needs_file)


def _describe_model(problem: Problem, built: object) -> tuple[Canonical, dict[str, str]]:
    """Texts of all layers, parameters and buffers by place, and what collected their values."""
    found = Canonical({id(problem): "problem", id(problem.loss): "loss"} if not isinstance(problem.loss, str) else {id(problem): "problem"})
    if not isinstance(built, nn.Module):
        return found, {"model": found.text(built, "model")}
    model = unwrapped(built)
    form: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        place = f"layer {name}" if name else "model"
        form |= {f"{place} {key}": text for key, text in found.module_attributes(module, place).items()}
    first: dict[int, str] = {}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        shared = first.setdefault(id(tensor), name)
        form[f"tensor {name}"] = found.text(tensor, f"tensor {name}") if shared == name else f"same as {shared}"
    return found, form


def _require_own_parts(model: nn.Module, other: nn.Module) -> None:
    """Raise ProblemError if two models share a module that has parameters or buffers, or the memory of a parameter."""
    modules = {id(module) for module in model.modules() if next(iter((*module.parameters(), *module.buffers())), None) is not None}
    memory = {_memory(parameter) for parameter in model.parameters()} - {None}
    shared = [f"module {name!r} ({type(module).__name__})" for name, module in other.named_modules() if id(module) in modules]
    shared += [f"parameter {name!r}" for name, parameter in other.named_parameters() if _memory(parameter) in memory]
    if model is other or shared:
        raise ProblemError(
            "model() returns parts of an earlier model, so that models would continue each other's training",
            where="problem.model()",
            expected="a new module with parameters of its own from each call",
            got="the same module twice" if model is other else f"in both: {', '.join(shared[:5])}",
            remedy="build the model inside model(), or return copy.deepcopy(...) of the one that is kept",
        )


def _memory(parameter: nn.Parameter) -> int | None:
    try:
        return parameter.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError, ValueError):  # lazy, sparse and meta parameters
        return None


def _require_equal_builds(one: tuple[Mapping[str, str], Mapping[str, ValueSummary]], other: tuple[Canonical, Mapping[str, str]]) -> None:
    found = _differences(one[0], other[1], operator.eq) + _differences(one[1], other[0].values, lambda a, b: a.digest == b.digest)
    if found:
        raise ProblemError(
            "model() built two different models from the same random seed",
            where="problem.model()",
            expected="equal parameters, buffers and attributes",
            got=f"differences in {', '.join(dict.fromkeys(found[:5]))}",
            remedy="draw from the default generators of torch, numpy or random, which are seeded, and let nothing depend on time or on "
            "earlier calls",
        )


def _identity(
    found: Canonical, form: dict[str, str], classes: Sequence[type], modules: Sequence[str], *, needs_file: bool = True
) -> Identity:
    """With the files and the live state of ``classes``, and of the classes and functions that ``found`` has met."""
    files = {}
    for kind in classes:
        if needs_file or getattr(sys.modules.get(kind.__module__), "__file__", None):
            files[kind.__module__] = class_source(kind).digest
    roots = {kind.__module__ for kind in classes} | set(modules)
    while True:
        reached = roots | found.modules
        sources = user_sources(reached)
        live = LiveCode(found, sources)
        for name in sorted(loaded_sources(reached)):
            live.add_module(name)
        for kind in classes:
            if kind.__module__ in sources or kind.__module__ not in files:
                live.add_class(kind)
        if found.modules <= reached:
            break
    texts = {place: short(text) for place, text in (form | live.form).items()}
    computed = {place: short(text) for place, text in live.computed.items()}
    return Identity(files | {name: source.digest for name, source in sources.items()}, texts, computed, found.values)


def _describe_attributes(found: Canonical, owner: object, place: str, leave_out: Iterable[str] = ()) -> dict[str, str]:
    own = {name: value for name, value in vars(owner).items() if name not in leave_out} if _has_vars(owner) else {}
    texts = {f"{place}.{name}": found.text(own[name], f"{place}.{name}") for name in sorted(own)}
    return {f"{place} class": f"{type(owner).__module__}:{type(owner).__qualname__}", **texts}


def _describe_class(found: Canonical, kind: type) -> dict[str, str]:
    """Which class a problem with its own training function is, and what the class holds that the function may read.

    The files of the class are digested, but they may hold several classes that differ in the function or in its constants alone.
    """
    held: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        held |= vars(base) if _is_own(base) else {}
    described = ("recipe", "loss", "path_options")
    names = [name for name, value in sorted(held.items()) if not (name.startswith("__") or name in described or _is_code(value))]
    texts = {f"class attribute {name}": found.text(held[name], f"class attribute {name}") for name in names}
    return {"problem class": kind.__qualname__, **texts}


def _is_code(value: object) -> bool:
    """Functions, classes, properties and other descriptors: they stand in the files."""
    return callable(value) or hasattr(type(value), "__get__")


def _tensors(value: object, place: str, seen: set[int]) -> Iterator[tuple[str, object]]:
    """Tensors and arrays of numbers in attributes, lists and dictionaries, at any depth, with their places."""
    if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc"):
        yield place, value
        return
    if id(value) in seen or isinstance(value, type | types.FunctionType | types.ModuleType):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from _tensors(item, f"{place}.{key}", seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not isinstance(item, int | float | str):
                yield from _tensors(item, f"{place}.{index}", seen)
    elif _has_vars(value):
        yield from _tensors(vars(value), place, seen)


def _has_vars(value: object) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type | types.FunctionType | types.MethodType)


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], equal: Callable[[Any, Any], bool]) -> list[str]:
    """The keys that only one of two dictionaries has, or whose values are not equal, in their order."""
    return [key for key in dict.fromkeys((*one, *other)) if key not in one or key not in other or not equal(one[key], other[key])]


def _defaults(problem: Problem) -> dict[str, str]:
    """The default options of a shipped problem."""
    return {name: Canonical().text(option.default, None) for name, option in inspect.signature(type(problem)).parameters.items()}


def _bases_outside(kind: type) -> list[type]:
    """A class and its bases that are not this package's, whose code ``NUMBERS_VERSION`` covers."""
    return [base for base in kind.__mro__ if _is_own(base) and base.__module__.partition(".")[0] != "genrep_dist"]


def _is_own(kind: type) -> bool:
    """Whether a class may come from the user or one of their libraries."""
    return kind.__module__.partition(".")[0] not in _NOT_THE_USERS_OWN
