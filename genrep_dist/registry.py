"""Registries: named objects of one kind, extended by `register` or by an installed package's entry points."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from genrep_dist.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one ``kind`` by name, in the order of registration.

    A package adds one with an entry point of the ``group`` (``name = "module:Object"``). Entry points are read when a name is not
    found among the registered ones, and when names are listed. A value given as text, ``module:Object``, is imported when it is used.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._values: dict[str, T | str] = {}
        self._entry_points_read = False

    def register(self, name: str, value: T | str) -> None:
        """Add ``value``. Raises ConfigError for a name that another value has."""
        if self._values.setdefault(name, value) != value:
            raise ConfigError(
                f"two {self.kind}s have the same name", where=self.group, expected="another name", got=f"{name}, which is taken"
            )

    def unregister(self, name: str) -> None:
        """Remove a name; nothing happens if it is not there."""
        self._values.pop(name, None)

    def get(self, name: str) -> T:
        """The object of that name. Raises ConfigError with the nearest names when there is none."""
        if name not in self:
            near = difflib.get_close_matches(name, self._values, n=3)
            raise ConfigError(
                f"there is no {self.kind} {name!r}",
                where=self.group,
                expected=", ".join(self._values),
                got=repr(name),
                remedy=f"did you mean {' or '.join(near)}?" if near else f"register it, or install the package that has it ({self.group})",
            )
        value = self._values[name]
        if isinstance(value, str):
            module, _, path = value.partition(":")
            found: object = importlib.import_module(module)
            for attribute in path.split("."):
                found = getattr(found, attribute)
            self._values[name] = value = cast("T", found)
        return value

    def __contains__(self, name: object) -> bool:
        if name not in self._values:
            self._read_entry_points()
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        self._read_entry_points()
        return iter(tuple(self._values))

    def values(self) -> list[T]:
        """All objects, in the order of registration."""
        return [self.get(name) for name in self]

    def _read_entry_points(self) -> None:
        if not self._entry_points_read:
            self._entry_points_read = True
            for found in entry_points(group=self.group):
                self._values.setdefault(found.name, found.value)
