"""Registries: named objects of one kind, extended by `register` or by the entry points of installed packages."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from genrep_dist.errors import ConfigError, describe_error
from genrep_dist.extension import is_shipped_class

T = TypeVar("T")
Registration = tuple[str, str, Any]
"""Group of a registry, name, and the registered value."""
_registries: dict[str, Registry[Any]] = {}
REGISTRIES = {
    "genrep_dist.kernels": "genrep_dist.core.kernels:KERNELS",
    "genrep_dist.importances": "genrep_dist.core.importances:IMPORTANCES",
    "genrep_dist.scorers": "genrep_dist.core.scorers:SCORERS",
    "genrep_dist.targets": "genrep_dist.core.targets:TARGETS",
    "genrep_dist.optimizers": "genrep_dist.training.optimizers:OPTIMIZERS",
    "genrep_dist.schedules": "genrep_dist.core.schedules:SCHEDULES",
    "genrep_dist.metrics": "genrep_dist.config.metrics:METRICS",
    "genrep_dist.stages": "genrep_dist.config.stages:STAGES",
    "genrep_dist.executors": "genrep_dist.executors.registry:EXECUTORS",
    "genrep_dist.score_layouts": "genrep_dist.config.score_layouts:SCORE_LAYOUTS",
}
"""The registries of this package by their groups. Each is made when its module is imported."""


class Registry(Generic[T]):
    """Objects of one ``kind`` by name, in the order of registration.

    An installed package adds one with an entry point of the ``group`` (``name = "module:Object"``). Entry points are read when names
    are listed for the first time, and whenever a name is not found. One that cannot be added leaves a warning, and the others are added.

    A value given as text, ``module:Object``, is imported when it is first used. It must be a subclass of ``base`` that defines all that
    ``base`` declares; with ``instances``, :meth:`get` returns an object of it, and an object of ``base`` can be registered too. ``check``
    raises TypeError, ValueError or ConfigError for a value that cannot be used. ``base`` and ``check`` can be given as text, as values.
    ``reserved`` names are refused.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        base: type | str | None = None,
        *,
        instances: bool = False,
        check: Callable[[Any], object] | str | None = None,
        reserved: Collection[str] = (),
    ) -> None:
        self.kind, self.group, self._reserved = kind, group, reserved
        self._base, self._instances, self._check = base, instances, check
        self._values: dict[str, Any] = {}
        self._made: dict[str, T] = {}
        self._packages: dict[str, str] = {}
        self._faults: dict[str, ConfigError] = {}
        self._entry_points_read = False
        self._refused: dict[tuple[str, str], ConfigError] = {}
        """What could not be added of installed packages, by name and path."""
        _registries[group] = self

    def require(self, make: Callable[[Any], T]) -> None:
        """Set ``make`` of a registry that stands below the module of its objects, and so was built without it."""
        self._make = make

    def register(self, name: str, value: Any) -> None:
        """Add ``value``. A class or function that is defined again, as when a module is reloaded, replaces the earlier one.

        Raises ConfigError for a name that another value has, and for one that is not lower-case letters, digits, ``-`` and ``_``.
        """
        self._add(name, value)

    def _add(self, name: str, value: Any, package: str = "") -> None:
        where = f"{self.group}, package {package}" if package else self.group
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise ConfigError(
                f"the name of a {self.kind} is not usable", where=where, expected="lower-case letters, digits, - and _", got=repr(name)
            )
        if name in self._reserved:
            raise ConfigError(f"the name of a {self.kind} is reserved", where=where, expected="another name", got=repr(name))
        if name in self._values and self._values[name] != value and _path(self._values[name]) != _path(value):
            raise ConfigError(
                f"two {self.kind}s have the same name",
                where=name,
                expected=f"a name that is not taken by {self._origin(name)}",
                got=_path(value) + (f" of package {package}" if package else ""),
                remedy="choose another name" if not package else "uninstall one of the packages; the first one is used",
            )
        self.replace(name, value)
        if package:
            self._packages[name] = package

    def register_loaded(self, name: str, value: Any) -> T:
        """Add ``value`` and load it. One that cannot be loaded is taken back, and its ConfigError raised."""
        before = self._values.get(name)
        self.register(name, value)
        try:
            return self.get(name)
        except ConfigError:
            self.unregister(name)
            if before is not None:
                self._values[name] = before
            raise

    def is_registered_as(self, name: str, path: str) -> bool:
        """Whether ``name`` is registered in this process already, with the object at ``path`` (module:Object)."""
        return name in self._values and _path(self._values[name]) == path

    def unregister(self, name: str) -> None:
        """Remove a name; nothing happens if it is not there."""
        self._values.pop(name, None)
        self._forget(name)

    def _forget(self, name: str) -> None:
        for known in (self._made, self._packages, self._faults):
            known.pop(name, None)

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
            try:
                self._made[name] = self._load(name)
            except Exception as error:
                raise ConfigError(
                    f"the {self.kind} {name!r} cannot be loaded",
                    where=f"{name} = {self._origin(name)} in {self.group}",
                    expected=f"a {self.kind} as documented, at an importable path module:Object",
                    got=describe_error(error),
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

    def usable(self) -> list[T]:
        """The objects that can be loaded; :meth:`faults` has the others. Raises ConfigError for one of this package."""
        return [self.get(name) for name in self if _is_shipped(self._values[name]) or self._fault(name) is None]

    def others(self, name: str) -> list[T]:
        """The objects of this package, and others that are loaded, without that of ``name``."""
        return [
            self.get(other) for other, value in tuple(self._values.items()) if other != name and (_is_shipped(value) or other in self._made)
        ]

    def faults(self) -> list[ConfigError]:
        """What other packages and programs have registered, or have tried to, and cannot be used."""
        failed = [self._fault(name) for name in self if not _is_shipped(self._values[name])]
        return [*self._refused.values(), *(error for error in failed if error is not None)]

    def extensions(self) -> list[Registration]:
        """What was registered by code outside this package."""
        return [(self.group, name, value) for name, value in self._values.items() if not _is_shipped(value)]

    def replace(self, name: str, value: Any) -> None:
        """Register ``value`` whatever has the name now."""
        if name not in self._values or self._values[name] is not value:
            self._values[name] = value
            self._forget(name)

    def _fault(self, name: str) -> ConfigError | None:
        if name not in self._faults:
            try:
                self.get(name)
            except ConfigError as error:
                self._faults[name] = error  # an import that fails is not tried again for each list of values
        return self._faults.get(name)

    def _load(self, name: str) -> T:
        parts: tuple[Any, ...] = (self._values[name], self._base, self._check)
        value, base, check = (import_object(part) if isinstance(part, str) else part for part in parts)
        made: T = value if base is None else self._checked(value, base)
        own = name if base is None else getattr(made, "name", name)
        if own != name:
            raise TypeError(f"{name!r} is not the {self.kind}'s own name, {own}")
        if check is not None:
            check(made)
        return made

    def _checked(self, found: Any, base: type) -> Any:
        if self._instances and isinstance(found, base):
            return found
        if not isinstance(found, type) or not issubclass(found, base):
            raise TypeError(f"{getattr(found, '__name__', type(found).__name__)} is not a subclass of {base.__name__}")
        declared = {name for kind in found.__mro__ if is_shipped_class(kind) for name in inspect.get_annotations(kind)}
        missing = sorted({*getattr(found, "__abstractmethods__", ()), *(name for name in declared if not hasattr(found, name))})
        if missing:
            raise TypeError(f"{found.__name__} does not define {', '.join(missing)}")
        return found() if self._instances else found

    def _read_entry_points(self) -> None:
        self._entry_points_read = True
        new = []
        for found in entry_points(group=self.group):
            package = "unknown" if found.dist is None else found.dist.name
            if (found.name, found.value) not in self._refused:
                try:
                    self._add(found.name, found.value, package)
                except ConfigError as error:
                    self._refused[found.name, found.value] = error
                    new.append(str(error))
        for text in new:
            warnings.warn(text, stacklevel=3)

    def _origin(self, name: str) -> str:
        """The path of a registered value, with the installed package that declares it."""
        return _path(self._values[name]) + (f" of package {self._packages[name]}" if name in self._packages else "")


def registrations() -> tuple[Registration, ...]:
    """What other packages and programs have registered in this process."""
    return tuple(found for registry in _registries.values() for found in registry.extensions())


def register_all(found: Iterable[Registration]) -> None:
    """Register the :func:`registrations` of another process in the registries that this one has imported."""
    for group, name, value in found:
        if group in _registries:
            _registries[group].replace(name, value)


def extension_faults() -> list[ConfigError]:
    """What other packages have registered in :data:`REGISTRIES`, or have tried to, and cannot be used."""
    used = [path for group, path in REGISTRIES.items() if group in _registries or entry_points(group=group)]
    return [error for path in used for error in import_object(path).faults()]


def import_object(path: str) -> Any:
    """The object at ``module:Object``."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def _is_shipped(value: Any) -> bool:
    module = value if isinstance(value, str) else getattr(value, "__module__", type(value).__module__)
    return str(module).startswith("genrep_dist.")


def _path(value: Any) -> str:
    """``module:Object`` of a class or function, of the text that names one, and of the class of another package's object."""
    if isinstance(value, str):
        return value
    named = value if hasattr(value, "__qualname__") else type(value)
    path = f"{named.__module__}:{named.__qualname__}"
    return path if named is value or not _is_shipped(path) else str(value)
