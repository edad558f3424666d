"""What loaded modules and classes hold at this moment: constants, computed or changed, and functions that were replaced."""

from __future__ import annotations

import ast
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from genrep_dist.problems.canonical import Canonical, closure, code_text
from genrep_dist.problems.sources import SourceFile, edited_error, is_users_file

_MUTATORS = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
_PROCESS_STATE = {
    *("time", "time_ns", "perf_counter", "monotonic", "process_time", "now", "today", "utcnow", "strftime", "ctime", "datetime"),
    *("getpid", "getppid", "getuser", "getlogin", "gethostname", "getfqdn", "node", "uname", "getcwd", "cwd", "home", "mkdtemp", "mkstemp"),
    *("uuid1", "uuid4", "urandom", "token_hex", "cpu_count", "virtual_memory", "cuda", "mps", "device_count", "get_num_threads"),
}
"""Names of functions and modules whose results belong to a process or a machine and not to a problem."""
_GENERATED = {"init", "repr", "eq", "lt", "le", "gt", "ge", "hash", "setattr", "delattr", "replace"}
"""Methods that `dataclass` makes, without underscores."""


class LiveCode:
    """Describes the state of modules and classes beyond what their source files say.

    ``form`` must be equal on all machines: constants that the source writes as literals, and functions that are not those of the file.
    ``computed`` may differ between machines: other constants, such as those read from files. Numbers that are computed are in
    ``canonical.values``. Left out: what the code itself changes while it runs (counters, caches), and clocks, process ids and the like.
    """

    def __init__(self, canonical: Canonical, sources: Mapping[str, SourceFile]) -> None:
        self.form: dict[str, str] = {}
        self.computed: dict[str, str] = {}
        self._canonical, self._sources = canonical, sources
        self._by_path = {source.path: source for source in sources.values()}
        self._used = set().union(*(_used_in_functions(source) for source in sources.values()))
        self._changed = set().union(*(_changed_by_functions(source) for source in sources.values()))

    def add_module(self, name: str) -> None:
        """A module of the user. ProblemError if a function of it is not what its file says."""
        module, source = sys.modules.get(name), self._sources[name]
        if module is None or source.tree is None:
            return
        self._add_constants(f"{name}.", vars(module), _assignments(source.tree.body))
        for key, value in sorted(vars(module).items()):
            if isinstance(value, types.FunctionType):
                self._add_function(f"{name}.{key}", value, value.__module__ or "")
            elif isinstance(value, type) and value.__module__ == name:
                self.add_class(value)

    def add_class(self, kind: type) -> None:
        """A class of the user, in a file or in none."""
        place = f"{kind.__module__}:{kind.__qualname__}"
        source = self._sources.get(kind.__module__)
        bodies = _class_bodies(source, kind.__name__) if source else []
        assigned: dict[str, list[ast.expr | None]] = {}
        for body in bodies:
            assigned |= _assignments(body)
        own = {key: value for key, value in vars(kind).items() if not (key.startswith("__") and key.endswith("__"))}
        for key in own:
            # Set from outside the class: what the file does not say.
            assigned.setdefault(key, [ast.Constant(0)])
        self._add_constants(f"{place}.", own, assigned)
        for key, value in sorted(vars(kind).items()):
            if isinstance(value, type) and value.__qualname__.startswith(f"{kind.__qualname__}."):
                self.add_class(value)
            for function in _functions_of(value):
                is_generated = key.strip("_") in _GENERATED and hasattr(kind, "__dataclass_fields__")
                if not (is_generated or (function.__module__ or "").startswith("namedtuple_")):
                    self._add_function(f"{place}.{key}", function, kind.__module__)

    def _add_constants(self, prefix: str, namespace: Mapping[str, object], assigned: Mapping[str, list[ast.expr | None]]) -> None:
        for name in sorted(assigned.keys() & namespace.keys() - self._changed):
            value, texts = namespace[name], assigned[name]
            # One of several literals may be chosen by what a machine has.
            is_literal = len(texts) == 1 and _is_literal(texts[0])
            if not _is_plain(value, paths=is_literal) or not (is_literal or name in self._used) or any(map(_reads_process_state, texts)):
                continue
            if isinstance(value, list | dict | set) and not all(_has_contents(text) for text in texts):
                continue
            target = self.form if is_literal else self.computed
            target[f"{prefix}{name}"] = self._canonical.text(value, f"{prefix}{name}")

    def _add_function(self, place: str, function: types.FunctionType, owner: str) -> None:
        while True:
            file = Path(function.__code__.co_filename)
            source = self._by_path.get(file.resolve())
            wrapped = getattr(function, "__wrapped__", None)
            if wrapped is not None and str(file).startswith("<") and str(file) not in ("<string>", "<stdin>"):
                pass  # generated by a library's decorator, with names that may differ between processes
            elif not file.is_file() or (is_users_file(file) and function.__module__ != owner):
                self.form[place] = self._canonical.text(function, place)
            elif source is not None and source.is_plain and code_text(function.__code__) not in _compiled(source.contents, str(file)):
                raise edited_error(source)
            elif source is not None:
                cells = {name: value for name, value in closure(function).items() if name != "__class__"}
                if cells:
                    self.computed[f"{place} closure"] = self._canonical.text(cells, f"{place} closure")
            if not isinstance(wrapped, types.FunctionType):
                return
            function = wrapped


@lru_cache(1024)
def _compiled(contents: bytes, path: str) -> frozenset[str]:
    """The texts of all functions' codes in a file."""

    def texts(code: types.CodeType) -> Iterator[str]:
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield code_text(constant)
                yield from texts(constant)

    return frozenset(texts(compile(contents, path, "exec", dont_inherit=True)))


def _functions_of(value: object) -> Iterator[types.FunctionType]:
    """The functions of a class's attribute."""
    if isinstance(value, property):
        parts: list[object] = [value.fget, value.fset, value.fdel]
    elif isinstance(value, staticmethod | classmethod):
        parts = [value.__func__]
    elif isinstance(value, cached_property):
        parts = [value.func]
    else:
        parts = [value if isinstance(value, types.FunctionType) else getattr(value, "__wrapped__", None) if callable(value) else None]
    yield from (part for part in parts if isinstance(part, types.FunctionType))


def _assignments(body: Iterable[ast.stmt]) -> dict[str, list[ast.expr | None]]:
    """The names that a module or class assigns, with what is assigned: a whole tuple to each of its names; None for ``+=``."""
    found: dict[str, list[ast.expr | None]] = {}
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        found.setdefault(part.id, []).append(node.value)
        elif isinstance(node, ast.AnnAssign | ast.AugAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found.setdefault(node.target.id, []).append(node.value if isinstance(node, ast.AnnAssign) else None)
        elif isinstance(node, ast.If | ast.For | ast.While | ast.With | ast.Try):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            inner += [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            for name, texts in _assignments(inner).items():
                found.setdefault(name, []).extend(texts)
    return found


def _class_bodies(source: SourceFile, name: str) -> list[list[ast.stmt]]:
    return [node.body for node in ast.walk(source.tree or ast.Module([], [])) if isinstance(node, ast.ClassDef) and node.name == name]


def _functions_in(source: SourceFile) -> Iterator[ast.AST]:
    """All nodes inside functions."""
    for node in ast.walk(source.tree or ast.Module([], [])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from ast.walk(node)


@lru_cache(1024)
def _used_in_functions(source: SourceFile) -> frozenset[str]:
    nodes = list(_functions_in(source))
    return frozenset(
        {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    )


@lru_cache(1024)
def _changed_by_functions(source: SourceFile) -> frozenset[str]:
    """Names of globals and attributes that functions assign or change in place: counters and caches."""
    found: set[str] = set()
    for node in _functions_in(source):
        changed: ast.expr | None = None
        if isinstance(node, ast.Global):
            found.update(node.names)
        elif isinstance(node, ast.AugAssign):
            changed = node.target
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            # cls.name and type(self).name; that of a class by its name is a setting.
            if not isinstance(node.value, ast.Name) or node.value.id == "cls":
                found.add(node.attr)
        elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            changed = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _MUTATORS:
            changed = node.func.value
        if isinstance(changed, ast.Name):
            found.add(changed.id)
        elif isinstance(changed, ast.Attribute):
            found.add(changed.attr)
    return frozenset(found)


def _reads_process_state(text: ast.expr | None) -> bool:
    """Whether an expression reads a clock, the process or the machine, so that its value differs from run to run."""
    nodes = [] if text is None else list(ast.walk(text))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} | {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return not names.isdisjoint(_PROCESS_STATE)


def _is_literal(text: ast.expr | None) -> bool:
    if text is None:
        return False
    try:
        ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        return False
    return True


def _has_contents(text: ast.expr | None) -> bool:
    """Whether an expression can be a container that is filled where it is written, not a cache that functions fill."""
    if isinstance(text, ast.Call) and isinstance(text.func, ast.Name):
        return text.func.id not in ("dict", "list", "set", "defaultdict", "OrderedDict", "Counter")
    return not (isinstance(text, ast.Dict) and not text.keys) and not (isinstance(text, ast.List) and not text.elts)


def _is_plain(value: object, *, paths: bool) -> bool:
    """Whether a value consists of numbers, texts, tensors and arrays. Without ``paths``, texts that may be file locations are none."""
    if isinstance(value, str):
        return paths or not ("/" in value or "\\" in value)
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(item, paths=paths) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item, paths=paths) for pair in value.items() for item in pair)
    return isinstance(value, bool | int | float | complex | Tensor | np.ndarray | np.generic)
