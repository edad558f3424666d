"""Creates a SQLite database for tracking, completely or not at all."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of an ``sqlite:///`` URI; None for every other address, and for a database in memory."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    name = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    return None if name in ("", ":memory:") else Path(name)


def create_database(tracking_uri: str, initialise: Callable[[str], object]) -> None:
    """Create the SQLite database of ``tracking_uri`` if it does not exist; do nothing for any other URI.

    ``initialise`` gets the URI of a temporary database and must create its tables. That takes seconds; a process killed meanwhile would
    leave half of the tables, and every later run would fail. So the finished database is moved into place in one step.
    """
    path = sqlite_path(tracking_uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        begun, finished = Path(folder, "begun.db"), Path(folder, "finished.db")
        initialise(f"sqlite:///{begun.resolve()}")
        # A copy, because ``initialise`` may still hold a connection to the original.
        with closing(sqlite3.connect(begun)) as connection:
            connection.execute("VACUUM INTO ?", (str(finished),))
        _place(finished, path)


def _place(finished: Path, path: Path) -> None:
    """Give ``finished`` the name ``path``, unless another process has created that file meanwhile."""
    try:
        os.link(finished, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            finished.replace(path)
