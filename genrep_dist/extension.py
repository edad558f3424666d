"""Calls of code that other packages wrote: an error there names the class, the method, and the line that raised it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from genrep_dist.errors import ExtensionError, GenRepError, ProblemError, describe_error

T = TypeVar("T")
_CONSTRUCTORS = ("__init__", "__post_init__")


class Extension:
    """Base of the classes that other packages subclass.

    A method of such a subclass that overrides one of this package's raises :class:`~genrep_dist.errors.ExtensionError` where its code
    raises anything but an error of this package; so do its constructor, its properties, and the iterators that it returns.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if is_shipped_class(cls):
            return
        interface = {name for base in cls.__mro__ if is_shipped_class(base) for name in vars(base) if not name.startswith("_")}
        for name in (*interface, *_CONSTRUCTORS):
            owner = next((base for base in cls.__mro__ if name in vars(base)), object)
            # Methods of a base that is an extension itself are guarded already; those of a mix-in are not.
            if owner is cls or (name in interface and not issubclass(owner, Extension)):
                setattr(cls, name, _guarded_member(vars(owner)[name], cls, name))


def is_shipped_class(kind: type) -> bool:
    """Whether a class is one of this package."""
    return kind.__module__.startswith("genrep_dist.")


def owner_text(owner: object) -> str:
    """``module:Name`` of a class or function, and of the class of any other object."""
    named: Any = owner if hasattr(owner, "__qualname__") else type(owner)
    return f"{named.__module__}:{named.__qualname__}"


@contextmanager
def extension_code(owner: object, method: str) -> Iterator[None]:
    """Raise ExtensionError for an error that the code of ``owner``, a class, function or object, raises in ``method``.

    Errors of this package pass, and so does the want of memory, for which a unit of work is retried in its own way.
    """
    try:
        yield
    except GenRepError:
        raise
    except Exception as error:
        torch: Any = sys.modules.get("torch")
        if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
            raise
        module = sys.modules.get(owner_text(owner).partition(":")[0])
        raise ExtensionError(
            f"{method} raised an error",
            where=f"{owner_text(owner)}.{method}",
            got=describe_error(error, getattr(module, "__file__", None)),
            remedy="correct this class and run again: what is computed is kept",
        ) from error


def build(kind: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """An object of a class. ExtensionError where its constructor does not take these arguments or fails."""
    with extension_code(kind, "__init__"):
        return kind(*arguments, **keywords)


def declared_settings(kind: Any, fields: object) -> dict[str, Any]:
    """Those ``fields`` of an experiment that a class names in ``settings``. Raises ProblemError for a name that is no field."""
    unknown = [name for name in kind.settings if not hasattr(fields, name)]
    require_returned(not unknown, kind, "settings", "names of fields of an experiment", ", ".join(unknown))
    return {name: getattr(fields, name) for name in kind.settings}


def require_returned(holds: bool, owner: object, method: str, expected: str, got: object, where: str = "") -> None:
    """Raise ProblemError, with what was ``expected`` of ``method`` and what it returned, unless ``holds``."""
    if not holds:
        text = got if isinstance(got, str) else f"{type(got).__name__} {got!r}"
        raise ProblemError(
            f"{method} returned something else",
            where=", ".join(filter(None, (f"{owner_text(owner)}.{method}", where))),
            expected=expected,
            got=text if len(text) <= 200 else f"{text[:200]} ...",
            remedy="correct this class and run again: what is computed is kept",
        )


def returned(kind: type[T], owner: object, method: str, value: object) -> T:
    """``value`` if it is of the type ``kind``, else a ProblemError."""
    require_returned(isinstance(value, kind), owner, method, kind.__name__, value)
    return value  # type: ignore[return-value]


def _guarded_member(member: Any, cls: type, name: str) -> Any:
    if isinstance(member, property):
        get, put, delete = (part and _guarded(part, cls, name) for part in (member.fget, member.fset, member.fdel))
        return property(get, put, delete, member.__doc__)
    if isinstance(member, (classmethod, staticmethod)):
        return type(member)(_guarded(member.__func__, cls, name))
    if isinstance(member, functools.cached_property):
        cached = functools.cached_property(_guarded(member.func, cls, name))
        cached.__set_name__(cls, name)
        return cached
    return _guarded(member, cls, name) if inspect.isfunction(member) else member


def _guarded(function: Callable[..., Any], cls: type, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*arguments: Any, **keywords: Any) -> Any:
        with extension_code(cls, name):
            result = function(*arguments, **keywords)
        return _guarded_items(result, cls, name) if isinstance(result, Iterator) else result

    return guarded


def _guarded_items(items: Iterator[Any], cls: type, name: str) -> Iterator[Any]:
    with extension_code(cls, name):
        yield from items
