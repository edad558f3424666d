"""The SQLite database for tracking: its address, its creation in one step, and its artifacts after a move."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from genrep_dist.errors import StoreError
from genrep_dist.filesystem import FOLDER, what_is_at

SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""What SQLite appends to the name of a database for the files that belong to it."""


def store_database(root: Path) -> tuple[str, Path]:
    """The tracking URI of the database in the store at ``root``, and the folder of its artifacts. StoreError as :func:`sqlite_uri`."""
    return sqlite_uri(root / "mlflow.db"), root / "mlflow-artifacts"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The file of an ``sqlite:///`` URI; None for every other address, and for a database in memory."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    name = tracking_uri.removeprefix("sqlite:///").partition("?")[0]
    return None if name in ("", ":memory:") else Path(name)


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite database at an absolute ``path``. StoreError for a path that such a URI cannot hold.

    MLflow makes the parent folder of the URI's text, and SQLAlchemy decodes it: quoting would give a second folder beside the store.
    """
    found = re.search(r"\?|%[0-9a-fA-F]{2}", str(path))
    if found is not None:
        raise StoreError(
            "MLflow cannot open a database in this folder",
            where=str(path.parent),
            expected="a path without ? and without % before two hexadecimal digits",
            got=f"{found[0]!r} in the path",
            remedy="rename the folder or choose another --store; or set tracking.uri to another database or a server",
        )
    return f"sqlite:///{path}"


def move_artifacts(path: Path, location: str) -> None:
    """Point our experiments in the database at ``path`` that point to a folder elsewhere of the same name to ``location`` (a URI).

    MLflow stores absolute locations: those of a store that was moved or copied are in the old place. MLflow has no call that changes them.
    """
    folder = location.rpartition("/")[2]
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        experiments = connection.execute("SELECT experiment_id, artifact_location FROM experiments WHERE name LIKE 'genrep/%'").fetchall()
        for number, old in experiments:
            if old == location or not str(old).endswith(f"/{folder}"):
                continue
            connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (location, number))
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (location, len(old) + 1, number, len(old) + 1, f"{old}/"),
            )


def require_location(path: Path, location: str) -> None:
    """Raise StoreError if an experiment of ours in the database at ``path`` keeps its artifacts elsewhere than in ``location`` (a URI).

    For a database in a store: whoever may write there could have files written to any place.
    """
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        found = connection.execute("SELECT name, artifact_location FROM experiments WHERE name LIKE 'genrep/%'").fetchall()
        runs = connection.execute(
            "SELECT e.name, r.artifact_uri FROM runs r JOIN experiments e ON r.experiment_id = e.experiment_id WHERE e.name LIKE 'genrep/%'"
        ).fetchall()
    for name, place in (*found, *runs):
        if str(place) != location and (not str(place).startswith(f"{location}/") or "/.." in str(place)):
            raise StoreError(
                "the tracking database of the store keeps files outside the store",
                where=f"{path}, experiment {name}",
                expected=location,
                got=str(place),
                remedy="move the database away: it is made again; or set tracking.uri",
            )


def create_database(tracking_uri: str, initialise: Callable[[str], object]) -> None:
    """Create the SQLite database of ``tracking_uri`` if it does not exist; do nothing for any other URI.

    ``initialise`` gets the URI of a temporary database and must create its tables. That takes seconds; a process killed meanwhile would
    leave half of the tables, and every later run would fail. So the finished database is moved into place in one step.
    """
    path = sqlite_path(tracking_uri)
    if path is not None and what_is_at(path) == FOLDER:
        raise StoreError(
            "the tracking database is a folder",
            where=str(path),
            expected="an SQLite file, or nothing",
            got=FOLDER,
            remedy="move this folder away, or set tracking.uri",
        )
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
