"""Every error that genrep_dist raises on purpose.

    GenRepError
    ├── ConfigError          an experiment that cannot be read or does not fit together (also a ValueError)
    ├── MethodError          an attribution method that does not exist or cannot be built here (also a ValueError)
    ├── ProblemError         a problem whose model, data, loss or recipe breaks the protocol
    │   └── NonFiniteError   NaN or Inf in data, outputs, gradients or scores, with the sample ids
    ├── PlanError            work refused before it starts: it cannot fit the memory, the disk or the cluster
    ├── StoreError           the store cannot be used
    │   ├── NotCommittedError   something was read that is not finished
    │   └── CorruptError        something finished is damaged
    ├── ConvergenceError     a solver that did not reach its tolerance
    └── UnitError            a unit of work that failed as often as it may

A message says what happened, where, what was expected, what was found, and what to do about it.
"""

from __future__ import annotations

from typing import Any


class GenRepError(Exception):
    """Base of the tree.

    ``what`` is a sentence; the other parts are shown on their own lines when given.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.remedy = remedy
        parts = [what]
        for label, text in (("where", where), ("expected", expected), ("got", got), ("what to do", remedy)):
            if text:
                parts.append(f"  {label}: {text}")
        super().__init__("\n".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries; keyword-only parts would be lost by the default protocol.
        return _rebuild, (type(self), self.what, self.where, self.expected, self.got, self.remedy)


def _rebuild(kind: type[GenRepError], what: str, where: str, expected: str, got: str, remedy: str) -> GenRepError:
    return kind(what, where=where, expected=expected, got=got, remedy=remedy)


class ConfigError(GenRepError, ValueError):
    """An experiment that cannot be read or does not fit together."""


class MethodError(GenRepError, ValueError):
    """An attribution method that does not exist or cannot be built here."""


class ProblemError(GenRepError):
    """A problem whose model, data, loss or recipe breaks the protocol."""


class NonFiniteError(ProblemError):
    """NaN or Inf where a number must be; names the sample ids."""


class PlanError(GenRepError):
    """Work refused before it starts, with the two numbers that do not fit."""


class StoreError(GenRepError):
    """The store cannot be used."""


class NotCommittedError(StoreError):
    """Something was read whose writing has not been finished and proved."""


class CorruptError(StoreError):
    """Something finished is damaged. ``damaged``: its path below the store, where a run can make it anew once it is put aside."""

    def __init__(self, what: str, *, damaged: str = "", where: str = "", expected: str = "", got: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, expected=expected, got=got, remedy=remedy)
        self.damaged = damaged

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_corrupt, (self.damaged, *super().__reduce__()[1])


def _rebuild_corrupt(damaged: str, kind: type[CorruptError], *parts: str) -> CorruptError:
    what, where, expected, got, remedy = parts
    return kind(what, damaged=damaged, where=where, expected=expected, got=got, remedy=remedy)


class ConvergenceError(GenRepError):
    """A solver that did not reach its tolerance; nothing is returned in its place."""


class UnitError(GenRepError):
    """A unit of work that failed as often as it may."""
