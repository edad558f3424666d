from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from genrep_dist.tracking.database import create_database, sqlite_path


def make_tables(uri: str) -> None:
    path = sqlite_path(uri)
    assert path is not None
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE first (a)")
        connection.execute("CREATE TABLE second (a)")
        connection.commit()


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(name for (name,) in connection.execute("SELECT name FROM sqlite_master"))


def die_half_way(uri: str) -> None:
    path = sqlite_path(uri)
    assert path is not None
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE first (a)")
        connection.commit()
    os.kill(os.getpid(), signal.SIGKILL)


def test_makes_a_database_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    create_database(f"sqlite:///{path}", make_tables)
    assert tables(path) == ["first", "second"]
    assert list(path.parent.iterdir()) == [path]


def test_leaves_an_existing_database_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"mine")
    create_database(f"sqlite:///{path}", make_tables)
    assert path.read_bytes() == b"mine"


def test_a_kill_half_way_leaves_no_half_database(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    child = multiprocessing.get_context("spawn").Process(target=create_database, args=(f"sqlite:///{path}", die_half_way))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not path.exists()
    create_database(f"sqlite:///{path}", make_tables)
    assert tables(path) == ["first", "second"]


def test_the_database_of_a_faster_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"

    def slow(uri: str) -> None:
        make_tables(uri)
        path.write_bytes(b"theirs")

    create_database(f"sqlite:///{path}", slow)
    assert path.read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("sqlite:///b.db?timeout=5", Path("b.db")),
        ("sqlite:///:memory:", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://host/db", None),
    ],
)
def test_only_sqlite_files_have_a_path(uri: str, path: Path | None) -> None:
    assert sqlite_path(uri) == path
