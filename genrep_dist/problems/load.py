"""Loading of problems and kernels by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from genrep_dist.core.generators import seeded_generators
from genrep_dist.core.kernels.base import Kernel
from genrep_dist.errors import GenRepError, ProblemError
from genrep_dist.problems.checks import build_model, check_problem, load_datasets, num_outputs, user_code_error
from genrep_dist.problems.digests import object_identity, problem_identity, source_digest
from genrep_dist.problems.protocol import Problem
from genrep_dist.problems.shipped import SHIPPED
from genrep_dist.problems.sources import user_sources
from genrep_dist.seeds import derive_seed

__all__ = [
    "SHIPPED",
    "build_model",
    "check_problem",
    "load_class",
    "load_datasets",
    "load_problem",
    "num_outputs",
    "object_identity",
    "problem_identity",
    "source_digest",
]


def load_problem(name: str, options: Mapping[str, Any] | None = None, search_path: Sequence[str | Path] = ()) -> Problem:
    """The problem of that name, built with ``options`` as keyword arguments and checked against the protocol.

    ``name`` is a shipped problem (:data:`SHIPPED`) or ``module:Class``. The module is searched in ``search_path``, then in the current
    folder, then in ``sys.path``. Data are not read: :func:`load_datasets` reads and checks them.

    Raises ProblemError if the module or class does not exist, its import or construction fails, an option is unknown, a part of the
    problem is missing, its recipe is not a Recipe, its loss is unknown, or ``model()`` does not build an nn.Module.
    """
    if not isinstance(name, str):
        raise ProblemError("this is no name of a problem", where="problem.name", expected="text, such as digits", got=repr(name)[:80])
    factory, target = _find(name, search_path, "problem")
    arguments = dict(options or {})
    _check_options(factory, arguments, (), target, "problem")
    try:
        # What it draws is then the same in all processes.
        with seeded_generators(derive_seed(0, "construction")):
            problem: object = factory(**arguments)
    except GenRepError:
        raise
    except Exception as error:
        raise user_code_error(f"{target} cannot be built", target, error) from error
    check_problem(problem, target)
    return cast("Problem", problem)


def load_class(name: str, options: Mapping[str, Any], search_path: Sequence[str | Path], kind: str) -> Any:
    """A user's class ``module:Class``, which takes ``options``. Look-up and errors are those of :func:`load_problem`, about a ``kind``.

    A class of kernels is also given the fields of an experiment that it names in ``settings``.
    """
    factory, target = _find(name, search_path, kind)
    settings = factory.settings if isinstance(factory, type) and issubclass(factory, Kernel) else ()
    _check_options(factory, dict(options), settings, target, kind)
    return factory


def load_function(name: str, search_path: Sequence[str | Path], kind: str) -> Any:
    """A user's function ``module:function``. Look-up and errors are those of :func:`load_problem`, about a ``kind``."""
    return _find(name, search_path, kind)[0]


def _check_options(factory: Any, options: dict[str, Any], settings: Sequence[str], target: str, kind: str) -> None:
    try:
        inspect.signature(factory).bind(**dict.fromkeys(settings), **options)
    except TypeError as error:
        raise _wrong_options(factory, options, target, kind, error) from error


def _find(name: str, search_path: Sequence[str | Path], kind: str) -> tuple[Any, str]:
    """The class of that name, and its full name ``module:Class``."""
    shipped = SHIPPED if kind == "problem" else {}
    target = shipped.get(name, name)
    module_name, colon, class_name = target.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *class_name.split(".")]):
        near = difflib.get_close_matches(name, shipped, n=1)
        raise ProblemError(
            f"there is no such {kind}",
            where="problem.name" if shipped else f"the class of a {kind}",
            expected=", or ".join(filter(None, (", ".join(shipped), "module:Class of your own"))),
            got=repr(name),
            remedy=f"did you mean {near[0]}?" if near else "",
        )
    if module_name == "__main__":
        raise _class_of_script(target, class_name)
    folders = list(dict.fromkeys(str(Path(folder).resolve()) for folder in (*search_path, ".")))
    module = _import(module_name, folders, target, kind)
    found: Any = module
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        raise ProblemError(
            "a module has no such class", where=target, expected=f"one of {', '.join(names) or 'its classes (it has none)'}", got=class_name
        )
    return found, target


def _class_of_script(target: str, class_name: str) -> ProblemError:
    script = getattr(sys.modules["__main__"], "__file__", None)
    beside = "" if script is None else f" beside {Path(script).name}"
    return ProblemError(
        "a class of the script that runs cannot be used by other processes",
        where=target,
        expected="module:Class in a file that every worker can import",
        got="__main__, which is another module in each process",
        remedy=f"move the class to a file of its own{beside}, such as my_problem.py, and name it my_problem:{class_name}",
    )


def _import(module_name: str, folders: list[str], target: str, kind: str) -> Any:
    top = module_name.partition(".")[0]
    if top != "genrep_dist":
        importlib.invalidate_caches()  # the file may be new
        wanted = importlib.machinery.PathFinder.find_spec(top, folders)
        loaded = getattr(sys.modules.get(top), "__file__", None)
        if wanted is not None and wanted.origin and loaded is not None and Path(loaded).resolve() != Path(wanted.origin).resolve():
            raise ProblemError(
                "another module of this name is already loaded", where=target, expected=wanted.origin, got=loaded, remedy="rename your file"
            )
    try:
        with _prepended_to_path(folders):
            module = importlib.import_module(module_name)
            # Remembers the files as they are imported, so that a later edit is noticed.
            user_sources([module_name])
            return module
    except GenRepError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ProblemError(
                "there is no such module",
                where=target,
                expected=f"{module_name.replace('.', '/')}.py in one of {', '.join(folders)}",
                got="no file of that name",
                remedy=_nearest_module(module_name, folders, target.partition(":")[2]),
            ) from error
        raise user_code_error(f"the {kind}'s module cannot be imported", target, error) from error
    except Exception as error:
        raise user_code_error(f"the {kind}'s module cannot be imported", target, error) from error


def _nearest_module(name: str, folders: Sequence[str], class_name: str) -> str:
    """The file of ``folders`` with the most similar name, as a remedy; empty if none is similar."""
    parent, dot, last = name.rpartition(".")
    places = [Path(folder, *parent.split(".")) if parent else Path(folder) for folder in folders]
    found = [path.stem for place in places if place.is_dir() for path in sorted(place.iterdir()) if _is_module(path)]
    near = difflib.get_close_matches(last, found, n=1)
    return f"did you mean {parent}{dot}{near[0]}:{class_name}?" if near else ""


def _is_module(path: Path) -> bool:
    return path.stem.isidentifier() and (path.suffix == ".py" or (path / "__init__.py").is_file())


@contextmanager
def _prepended_to_path(folders: list[str]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


def _wrong_options(factory: Any, options: dict[str, Any], target: str, kind: str, error: TypeError) -> ProblemError:
    accepted = [name for name in inspect.signature(factory).parameters if name != "self"]
    unknown = [name for name in options if name not in accepted]
    near = difflib.get_close_matches(unknown[0], accepted, n=1) if unknown else []
    return ProblemError(
        f"the options do not match the arguments of the {kind}'s class",
        where=f"{kind}.options of {target}",
        expected=f"some of {', '.join(accepted)}" if accepted else "no options",
        got=", ".join(unknown) or str(error),
        remedy=f"did you mean {near[0]}?" if near else "",
    )
