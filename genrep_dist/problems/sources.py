"""The user's source files: which ones a module reaches by its imports, and their contents as Python imported them."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from genrep_dist.errors import ProblemError

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})
_seen: dict[str, tuple[object, SourceFile]] = {}
"""By module: what one import of it made, and its file as it was read after that import."""


@dataclass(frozen=True)
class SourceFile:
    """The file of one module. ``is_plain``: Python compiled its text as it is, not a rewritten one as pytest does."""

    module: str
    path: Path
    contents: bytes
    is_package: bool = False
    is_plain: bool = True

    @cached_property
    def digest(self) -> str:
        """sha256, whatever the line ends."""
        return hashlib.sha256(self.contents).hexdigest()

    @cached_property
    def tree(self) -> ast.Module | None:
        """Its syntax tree; None for what is not Python."""
        if self.path.suffix != ".py":
            return None
        try:
            return ast.parse(self.contents)
        except (SyntaxError, ValueError):
            return None

    @cached_property
    def imports(self) -> tuple[str, ...]:
        """The modules that its import statements may mean and that are imported with it."""
        return tuple(dict.fromkeys(self._imported_by(_nodes(self.tree, late=False))))

    @cached_property
    def late_imports(self) -> tuple[str, ...]:
        """The modules that import statements in functions, and those for type checkers, may mean."""
        return tuple(dict.fromkeys(self._imported_by(_nodes(self.tree, late=True))))

    def _imported_by(self, nodes: Iterable[ast.AST]) -> Iterator[str]:
        package = self.module if self.is_package else self.module.rpartition(".")[0]
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield from _with_parents(alias.name)
            elif isinstance(node, ast.ImportFrom):
                try:
                    base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
                except ImportError:
                    continue
                yield from _with_parents(base)
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _nodes(tree: ast.AST | None, *, late: bool) -> Iterator[ast.AST]:
    """The nodes of a module that run when it is imported, or the ``late`` ones: those in functions and below `if TYPE_CHECKING`."""
    waiting = [] if tree is None else [tree]
    while waiting:
        node = waiting.pop(0)
        is_late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if is_late and late:
            yield from ast.walk(node)
        elif not is_late:
            if not late:
                yield node
            waiting += ast.iter_child_nodes(node)


def is_users_file(path: str | Path) -> bool:
    """Whether a file belongs neither to Python, nor to an installed package, nor to this one."""
    found = Path(path).resolve()
    if "site-packages" in found.parts or "dist-packages" in found.parts or found.is_relative_to(_PACKAGE):
        return False
    return found.is_file() and not any(found.is_relative_to(folder) for folder in _LIBRARIES)


def class_source(kind: type) -> SourceFile:
    """The file of a class, the user's or not. ProblemError if it has none, or if it was edited since it was imported."""
    module = sys.modules.get(kind.__module__)
    found = None if module is None else _loaded_source(module)
    if found is None:
        reason = "it has no file"
        try:
            inspect.getsourcefile(kind)
        except (TypeError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        raise ProblemError(
            "a class has no source file, so results cannot be tied to its code",
            where=f"{kind.__module__}:{kind.__qualname__}",
            expected="a class in a file",
            got=reason,
            remedy="move the class into a .py file and name it module:Class",
        )
    return found


def user_sources(modules: Iterable[str]) -> dict[str, SourceFile]:
    """The user's files among ``modules`` and all that these import, directly or not, by module. ProblemError for an edited file."""
    return _reached(modules, late=True)


def loaded_sources(modules: Iterable[str]) -> dict[str, SourceFile]:
    """Those of :func:`user_sources` that are imported with ``modules``, in every process, and not by a function when it is called."""
    return _reached(modules, late=False)


def _reached(modules: Iterable[str], *, late: bool) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}
    visited: set[str] = set()
    waiting = sorted(modules)
    folders = list(dict.fromkeys(filter(None, map(_import_folder, waiting))))
    while waiting:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        imported = sys.modules.get(name)
        module = imported if isinstance(imported, types.ModuleType) else None
        file = getattr(module, "__file__", None)
        if module is not None and not (isinstance(file, str) and is_users_file(file)):
            if isinstance(file, str) and not Path(file).exists() and name in _seen:
                raise _edited(Path(file), "no file there")
            continue
        source = source_on_disk(name, folders) if module is None else _loaded_source(module)
        if source is not None:
            found[name] = source
            waiting += (*source.imports, *source.late_imports) if late else source.imports
            waiting += _references(module)
    return found


def edited_error(source: SourceFile) -> ProblemError:
    """The error for a file that has changed since it was imported."""
    return _edited(source.path, "other contents of the file")


def _edited(path: Path, got: str) -> ProblemError:
    return ProblemError(
        "a file was edited since it was imported",
        where=str(path),
        expected="the code that this process has imported",
        got=got,
        remedy="restart Python (in a notebook, the kernel) and run again",
    )


def _loaded_source(module: types.ModuleType) -> SourceFile | None:
    """The file that a module was imported from; None without one. ProblemError if its contents have changed since."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not Path(file).is_file():
        return None
    loader = getattr(module, "__loader__", None)
    is_plain = type(loader) is importlib.machinery.SourceFileLoader
    source = SourceFile(module.__name__, Path(file).resolve(), _read(Path(file)), hasattr(module, "__path__"), is_plain)
    # importlib.reload and a new import make a new spec.
    imported: object = module if module.__spec__ is None else module.__spec__
    known = _seen.get(module.__name__)
    if known is None or known[0] is not imported:
        _seen[module.__name__] = imported, source
        return source
    if known[1].digest != source.digest:
        raise edited_error(source)
    return known[1]


def source_on_disk(name: str, folders: list[str], *, only: bool = False) -> SourceFile | None:
    """The user's file that an import of ``name`` would find; with ``only``, in ``folders`` alone. Nothing is imported."""
    top = name.partition(".")[0]
    loaded = getattr(sys.modules.get(top), "__file__", None)
    if top in sys.stdlib_module_names or (isinstance(loaded, str) and not is_users_file(loaded)):
        return None
    path: list[str] | None = folders if only else [*folders, *sys.path]
    spec = None
    for part in _with_parents(name):
        if path is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(part, path)
        if spec is None:
            return None
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    if spec is None or spec.origin is None or not spec.has_location or not is_users_file(spec.origin):
        return None
    return SourceFile(name, Path(spec.origin).resolve(), _read(Path(spec.origin)), path is not None)


def _import_folder(name: str) -> str | None:
    """The folder from which a loaded module was imported: that of its outermost package."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    parents = Path(file).resolve().parents
    depth = name.count(".") + hasattr(module, "__path__")
    return str(parents[depth]) if depth < len(parents) else None


def _references(module: types.ModuleType | None) -> Iterator[str]:
    """The modules of what a module's names mean: of modules, functions and classes."""
    for name, value in list(vars(module).items()) if module is not None else []:
        if isinstance(value, types.ModuleType):
            # Python sets a module as an attribute of its package, whoever imports it.
            if module is None or value.__name__ != f"{module.__name__}.{name}":
                yield value.__name__
        elif isinstance(value, types.FunctionType | type):
            yield value.__module__ or ""


def _read(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


def _with_parents(name: str) -> list[str]:
    """For a.b.c: a, a.b and a.b.c."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]
