"""The exceptions of genrep_dist.

    GenRepError
    ├── ConfigError          an experiment cannot be read or is inconsistent (also a ValueError)
    ├── MethodError          an attribution method does not exist or cannot be built (also a ValueError)
    ├── ProblemError         a problem's model, data, loss or recipe breaks the protocol
    │   └── NonFiniteError   NaN or Inf in data, outputs, gradients or scores
    ├── PlanError            work refused before it starts: it exceeds memory, disk or cluster
    ├── StoreError           the store cannot be used
    │   ├── NotCommittedError   something unfinished was read
    │   └── CorruptError        something finished is damaged
    ├── ConvergenceError     a solver did not reach its tolerance
    ├── ExtensionError       the code of another package's class raised an error
    ├── UnitError            a unit of work failed in all of its attempts
    ├── TimeLimitError       work took longer than resources.unit_timeout
    ├── OutOfTimeError       a run has used the time that it was given
    └── DoctorError          the doctor has red findings about the first seed

Each class states in ``failure_kind`` what its error means for a unit of work that raises it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from genrep_dist.redaction import redact


class FailureKind(StrEnum):
    """What the failure of a unit of work means for the unit and for the run."""

    RETRYABLE = "retryable"  # another attempt may succeed
    OUT_OF_MEMORY = "out_of_memory"  # retryable; smaller units or fewer workers help
    CRASHED = "crashed"  # retryable; the attempt ended its process. A unit whose attempts all crash is quarantined
    STORE = "store"  # retryable; after the last attempt the run stops at once, since no other unit could write its results
    FATAL = "fatal"  # every attempt fails in the same way
    CORRUPT = "corrupt"  # an input in the store is damaged and must be recomputed first

    @property
    def is_retryable(self) -> bool:
        return self not in (FailureKind.FATAL, FailureKind.CORRUPT)


class GenRepError(Exception):
    """Base class. ``what`` is one sentence; the other parts are optional and shown on their own lines.

    Passwords in addresses are hidden.
    """

    failure_kind: ClassVar[FailureKind] = FailureKind.RETRYABLE

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", remedy: str = "") -> None:
        self.what, self.where, self.expected, self.got, self.remedy = map(redact, (what, where, expected, got, remedy))
        labelled = {"where": self.where, "expected": self.expected, "got": self.got, "what to do": self.remedy}
        super().__init__("\n".join([self.what, *(f"  {label}: {text}" for label, text in labelled.items() if text)]))

    def __reduce__(self) -> tuple[Any, ...]:
        # The default protocol passes only positional arguments, which would lose the keyword-only parts.
        return _rebuild, (type(self), self.what, self._keywords())

    def _keywords(self) -> dict[str, Any]:
        return {"where": self.where, "expected": self.expected, "got": self.got, "remedy": self.remedy}


def _rebuild(cls: type[GenRepError], what: str, keywords: dict[str, Any]) -> GenRepError:
    return cls(what, **keywords)


class ConfigError(GenRepError, ValueError):
    """An experiment cannot be read or is inconsistent."""

    failure_kind = FailureKind.FATAL


class MethodError(GenRepError, ValueError):
    """An attribution method does not exist or cannot be built."""

    failure_kind = FailureKind.FATAL


class ProblemError(GenRepError):
    """A problem's model, data, loss or recipe breaks the protocol."""

    failure_kind = FailureKind.FATAL


class NonFiniteError(ProblemError):
    """NaN or Inf where a finite number is required. The message names the sample ids."""


class PlanError(GenRepError):
    """Work refused before it starts. The message names the two numbers that do not fit."""


class StoreError(GenRepError):
    """The store cannot be used."""

    failure_kind = FailureKind.STORE


class NotCommittedError(StoreError):
    """Something was read that is not finished."""

    failure_kind = FailureKind.RETRYABLE


@dataclass(frozen=True)
class DamagedArtifact:
    """A damaged artifact of the store: its ``kind`` and ``key``."""

    kind: str
    key: str


@dataclass(frozen=True)
class DamagedFile:
    """A damaged file, by its path below the store."""

    path: str


class CorruptError(StoreError):
    """Something finished is damaged. ``damaged`` names it if a run can recompute it, else it is None."""

    failure_kind = FailureKind.CORRUPT

    def __init__(self, what: str, *, damaged: DamagedArtifact | DamagedFile | None = None, **parts: str) -> None:
        super().__init__(what, **parts)
        self.damaged = damaged

    def _keywords(self) -> dict[str, Any]:
        return {**super()._keywords(), "damaged": self.damaged}


class ConvergenceError(GenRepError):
    """A solver did not reach its tolerance. It returns no approximate result."""

    failure_kind = FailureKind.FATAL


class ExtensionError(GenRepError):
    """The code of a class that another package or program added raised an error. Names the class, the method, and the line that raised."""


class UnitError(GenRepError):
    """A unit of work failed in all of its attempts."""


class TimeLimitError(GenRepError):
    """A unit of work, or one training by a problem's own function, took longer than ``resources.unit_timeout``."""

    failure_kind = FailureKind.FATAL


class OutOfTimeError(GenRepError):
    """A run has used the time that it was given, and more is left. What it computed is kept, and the next run goes on from there."""


class DoctorError(GenRepError):
    """The doctor has red findings about a run's first seed, so that its retrainings are not begun."""

    failure_kind = FailureKind.FATAL


_PACKAGE = __file__.removesuffix("errors.py")
_IMPORTLIB = ("importlib/__init__.py", "importlib\\__init__.py")


def describe_error(error: BaseException, file: str | None = None) -> str:
    """Type and text of an error with the line outside this package that raised it, and the last line of ``file`` on the way there."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if not path.startswith((_PACKAGE, "<frozen")) and not path.endswith(_IMPORTLIB):
            places.append((path, trace.tb_lineno))
        trace = trace.tb_next
    shown = dict.fromkeys([*[place for place in places if place[0] == file][-1:], *places[-1:]])
    text = ", then ".join(f"{path}, line {line}" for path, line in shown)
    return f"{type(error).__name__}: {error}" + (f" (in {text})" if text else "")
