"""Registries: objects by name, those of this package, those that a program registers, and those of installed packages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Generic, Protocol, TypeVar

from genrep_dist.errors import ConfigError


class Named(Protocol):
    """An object with a name that never changes."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Objects of one kind by name, in the order in which they were added; the classes of this package come first.

    ``kind`` names them in messages. ``shipped`` are ``module:Class`` paths. ``group`` is the entry-point group in which an installed
    package can name a class of its own. Shipped classes and entry points are imported at the first look-up.
    """

    def __init__(self, kind: str, group: str, shipped: Sequence[str]) -> None:
        self.kind, self.group = kind, group
        self._shipped = tuple(shipped)
        self._items: dict[str, T] = {}
        self._is_loaded = False

    def register(self, item: T) -> T:
        """Add ``item`` under its name and return it. Registering a class again replaces its object.

        Raises ConfigError when an object of another class has the name.
        """
        self._load()
        return self._add(item)

    def load(self, target: str) -> T:
        """Import the class ``module:Class``, register an object of it and return that. Raises ConfigError when there is no such class."""
        self._load()
        return self._add(self._build(target, target))

    def get(self, name: str) -> T | None:
        self._load()
        return self._items.get(name)

    def __getitem__(self, name: str) -> T:
        """The object of that name. Raises ConfigError when there is none."""
        found = self.get(name)
        if found is None:
            raise ConfigError(
                f"there is no {self.kind} of this name",
                where=name,
                expected=f"one of {', '.join(self)}",
                got=name,
                remedy=f"import the module that registers it, or install the package that has it in the entry points {self.group}",
            )
        return found

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(tuple(self._items))

    def values(self) -> tuple[T, ...]:
        self._load()
        return tuple(self._items.values())

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        for target in self._shipped:
            self._add(self._build(target, target))
        for entry in entry_points(group=self.group):
            self._add(self._build(entry.value, f"entry point {entry.name} of {self.group}"))

    def _build(self, target: str, where: str) -> T:
        module, _, name = target.partition(":")
        try:
            built: T = getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"a {self.kind} cannot be loaded",
                where=where,
                expected="module:Class of an importable module, whose class is built without arguments",
                got=f"{type(error).__name__}: {error}",
            ) from error
        return built

    def _add(self, item: T) -> T:
        known = self._items.get(item.name)
        if known is not None and _path(known) != _path(item):
            raise ConfigError(
                f"two {self.kind}s have one name",
                where=item.name,
                expected=f"a name that is not taken by {_path(known)}",
                got=_path(item),
                remedy="rename one of them",
            )
        self._items[item.name] = item
        return item


def _path(item: object) -> str:
    return f"{type(item).__module__}:{type(item).__qualname__}"
