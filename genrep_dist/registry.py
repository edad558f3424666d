"""Registries: named objects of one kind, extended by `register` or by an installed package's entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from genrep_dist.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one ``kind`` by name, in the order of registration.

    A package adds one with an entry point of the ``group`` (``name = "module:Object"``). Entry points are read when a name is not
    found among the registered ones, and when names are listed.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._values: dict[str, T] = {}
        self._entry_points_read = False

    def register(self, name: str, value: T) -> T:
        """Add ``value``. Raises ConfigError for a name that is taken."""
        if self._values.get(name, value) is not value:
            raise ConfigError(f"two {self.kind}s of one name", where=self.group, expected="a name that is not taken", got=repr(name))
        self._values[name] = value
        return value

    def unregister(self, name: str) -> None:
        """Remove a registered name; nothing happens if it is not there."""
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
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._values:
            self._read_entry_points()
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        self._read_entry_points()
        return iter(tuple(self._values))

    def values(self) -> list[T]:
        return [self._values[name] for name in self]

    def _read_entry_points(self) -> None:
        if not self._entry_points_read:
            self._entry_points_read = True
            for found in entry_points(group=self.group):
                if found.name not in self._values:
                    self._values[found.name] = found.load()
