"""Records of the store whose JSON is intact, and whose contents are not those of a record: of another program, or changed by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from genrep_dist.errors import CorruptError, DamagedFile, GenRepError
from genrep_dist.store.damage_notes import noted
from genrep_dist.store.objects import Objects

UNREADABLE = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError)
"""What code that reads a record raises where a field is missing or has another type."""


@contextmanager
def reading_record(objects: Objects, path: str) -> Iterator[None]:
    """Turns errors of the code that reads the fields of the record at ``path`` into a CorruptError that names the file."""
    try:
        yield
    except GenRepError:
        raise
    except UNREADABLE as error:
        raise noted(
            objects,
            CorruptError(
                "a record of the store has missing or other fields",
                where=f"{objects.uri}/{path}",
                got=f"{type(error).__name__}: {error}"[:300],
                remedy="run the experiment again: the file is moved away and recreated",
                damaged=DamagedFile(path),
            ),
        ) from error
