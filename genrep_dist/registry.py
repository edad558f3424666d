"""Registries: named objects of one kind, extended by `register` or by the entry points of installed packages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from genrep_dist.errors import ConfigError

T = TypeVar("T")
Registration = tuple[str, str, Any]
"""Group of a registry, name, and the registered value."""
_registries: dict[str, Registry[Any]] = {}


class Registry(Generic[T]):
    """Objects of one ``kind`` by name, in the order of registration.

    An installed package adds one with an entry point of the ``group`` (``name = "module:Object"``). Entry points are read when names
    are listed for the first time, and whenever a name is not found. A value given as text, ``module:Object``, is imported when it is
    first used. ``make`` turns a registered value into the object that :meth:`get` returns, and raises TypeError or ValueError for a
    value that is not of this kind; without it, the value is the object. ``reserved`` names are refused.
    """

    def __init__(self, kind: str, group: str, make: Callable[[Any], T] | None = None, reserved: Collection[str] = ()) -> None:
        self.kind, self.group, self._reserved = kind, group, reserved
        self._make = make
        self._values: dict[str, Any] = {}
        self._made: dict[str, T] = {}
        self._entry_points_read = False
        _registries[group] = self

    def require(self, make: Callable[[Any], T]) -> None:
        """Set ``make`` of a registry that stands below the module of its objects, and so was built without it."""
        self._make = make

    def register(self, name: str, value: Any) -> None:
        """Add ``value``. A class or function that is defined again, as when a module is reloaded, replaces the earlier one.

        Raises ConfigError for a name that another value has, and for one that is not lower-case letters, digits, ``-`` and ``_``.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ConfigError(
                f"the name of a {self.kind} is not usable", where=self.group, expected="lower-case letters, digits, - and _", got=repr(name)
            )
        if name in self._reserved:
            raise ConfigError(f"the name of a {self.kind} is reserved", where=self.group, expected="another name", got=repr(name))
        if name in self._values and self._values[name] != value and _path(self._values[name]) != _path(value):
            raise ConfigError(
                f"two {self.kind}s have the same name",
                where=name,
                expected=f"a name that is not taken by {_path(self._values[name])}",
                got=_path(value),
                remedy="choose another name",
            )
        self._values[name] = value
        self._made.pop(name, None)

    def unregister(self, name: str) -> None:
        """Remove a name; nothing happens if it is not there."""
        self._values.pop(name, None)
        self._made.pop(name, None)

    def get(self, name: str) -> T:
        """The object of that name. Raises ConfigError, with the nearest names, when there is none or it cannot be loaded."""
        if name not in self:
            near = difflib.get_close_matches(name, self._values, n=3)
            raise ConfigError(
                f"there is no {self.kind} {name!r}",
                where=self.group,
                expected=f"one of {', '.join(self._values)}",
                got=repr(name),
                remedy=f"did you mean {' or '.join(near)}?" if near else f"register it, or install the package that has it ({self.group})",
            )
        if name not in self._made:
            value = self._values[name]
            try:
                found = _import(value) if isinstance(value, str) else value
                self._made[name] = found if self._make is None else self._make(found)
            except Exception as error:
                raise ConfigError(
                    f"the {self.kind} {name!r} cannot be loaded",
                    where=f"{name} = {_path(value)} in {self.group}",
                    expected=f"a {self.kind} as documented, at an importable path module:Object",
                    got=f"{type(error).__name__}: {error}",
                    remedy="correct or uninstall the package that declares it",
                ) from error
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._values:
            self._read_entry_points()
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        if not self._entry_points_read:
            self._read_entry_points()
        return iter(tuple(self._values))

    def values(self) -> list[T]:
        """All objects, in the order of registration."""
        return [self.get(name) for name in self]

    def extensions(self) -> list[Registration]:
        """What was registered by code outside this package."""
        return [(self.group, name, value) for name, value in self._values.items() if not _is_shipped(value)]

    def replace(self, name: str, value: Any) -> None:
        """Register ``value`` whatever has the name now."""
        if self._values.get(name) is not value:
            self._values[name] = value
            self._made.pop(name, None)

    def _read_entry_points(self) -> None:
        self._entry_points_read = True
        for found in entry_points(group=self.group):
            if found.name not in self._values:
                self.register(found.name, found.value)


def registrations() -> tuple[Registration, ...]:
    """What other packages and programs have registered in this process."""
    return tuple(found for registry in _registries.values() for found in registry.extensions())


def register_all(found: Iterable[Registration]) -> None:
    """Register the :func:`registrations` of another process in the registries that this one has imported."""
    for group, name, value in found:
        if group in _registries:
            _registries[group].replace(name, value)


def _is_shipped(value: Any) -> bool:
    module = value if isinstance(value, str) else getattr(value, "__module__", type(value).__module__)
    return str(module).startswith("genrep_dist.")


def subclass_of(base: type[T]) -> Callable[[Any], type[T]]:
    """A check for :class:`Registry`: that a value is a subclass of ``base`` with nothing abstract left."""

    def check(found: Any) -> type[T]:
        if not isinstance(found, type) or not issubclass(found, base):
            raise TypeError(f"{found!r} is not a subclass of {base.__name__}")
        if inspect.isabstract(found):
            raise TypeError(f"{found.__name__} does not define {', '.join(sorted(getattr(found, '__abstractmethods__', ())))}")
        return found

    return check


def _import(path: str) -> Any:
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _path(value: Any) -> str:
    """``module:Object`` of a class or function, of the text that names one, and of the class of another package's object."""
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}:{named.__qualname__}"
    return path if named is value or not _is_shipped(path) else str(value)
