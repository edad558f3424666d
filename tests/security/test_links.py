"""Links in a store lead nowhere outside it: what they lead to is not read, written, moved or deleted."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import genrep_dist as gr
from genrep_dist.cli.main import app
from genrep_dist.errors import DamagedArtifact, StoreError
from genrep_dist.store import Store
from genrep_dist.store.damaged import move_damaged
from genrep_dist.tracking.database import require_location
from tests.security.conftest import Finished

REFUSED = r"a link in the store leads out of it"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/mine.txt").write_text("mine")
    (tmp_path / "store").mkdir()
    return tmp_path


def write_array(store: Store) -> None:
    artifact = store.artifact("kernel", "ab" * 32)
    artifact.write("phi", np.zeros((2, 2)), ("train", "test"))
    artifact.commit({})


def write_part(store: Store) -> None:
    artifact = store.artifact("kernel", "ab" * 32)
    artifact.create("phi", (4, 2), (2, 2), "float64", ("train", "test"))
    artifact.write_part("one", "phi", (0, 0), np.zeros((2, 2)))


def move_to(store: Store) -> None:
    store.objects.put("a", b"")
    store.objects.move("a", "refused/mine.txt")


HERE = "artifacts/kernel/ab/" + "ab" * 32
USES: dict[str, tuple[str, Callable[[Store], object]]] = {
    "writes a file": ("results", lambda store: store.objects.put("results/mine.txt", b"other")),
    "writes below": ("results/a", lambda store: store.objects.put_json("results/a/mine.txt", 1)),
    "creates": ("lease", lambda store: store.objects.create("lease/new.json", b"")),
    "reads": ("results", lambda store: store.objects.get("results/mine.txt")),
    "looks": ("results", lambda store: store.objects.exists("results/mine.txt")),
    "lists": ("results/a", lambda store: store.objects.list("results")),
    "deletes": ("results", lambda store: store.objects.delete("results/mine.txt")),
    "deletes a folder": ("results/a", lambda store: store.objects.delete_folder("results")),
    "moves away": ("results", lambda store: store.objects.move("results/mine.txt", "refused/mine.txt")),
    "moves to": ("refused", move_to),
    "puts an artifact aside": (f"{HERE}/more", lambda store: move_damaged(store.objects, DamagedArtifact("kernel", "ab" * 32))),
    "writes an array to an artifact": (HERE, write_array),
    "writes an array": (f"{HERE}/phi", write_array),
    "writes chunks": (f"{HERE}/phi/c", write_array),
    "writes a chunk": (f"{HERE}/phi/c/0", write_array),
    "writes a part": (f"{HERE}/phi/c/0", write_part),
    "writes a table": ("ledger", lambda store: store.ledger("c" * 64).keys()),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_link_leads_to_is_left_alone(place: Path, use: str) -> None:
    path, act = USES[use]
    link = place / "store" / path
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(place / "outside")
    if "ledger" in path:
        (place / "outside" / ("c" * 64)).mkdir()
    before = sorted(found.name for found in (place / "outside").iterdir())
    with pytest.raises(StoreError, match=REFUSED) as refused:
        act(Store(str(place / "store")))
    assert str(link) in str(refused.value)
    assert sorted(found.name for found in (place / "outside").iterdir()) == before
    assert (place / "outside/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("target", ["outside/mine.txt", "outside/nothing"])
def test_a_link_in_place_of_a_file(place: Path, target: str) -> None:
    (place / "store/a.json").symlink_to(place / target)
    with pytest.raises(StoreError, match=REFUSED):
        Store(str(place / "store")).objects.put_json("a.json", {})
    assert not (place / "outside/nothing").exists()


def test_links_inside_a_store_and_a_store_behind_a_link(place: Path) -> None:
    (place / "store/real").mkdir()
    (place / "store/other").symlink_to(place / "store/real")
    (place / "door").symlink_to(place / "store")
    objects = Store(str(place / "door")).objects
    objects.put("other/a", b"1")
    assert objects.get("real/a") == b"1"
    assert objects.list("real") == ["real/a"]


def test_a_path_that_climbs(place: Path) -> None:
    with pytest.raises(StoreError, match=REFUSED):
        Store(str(place / "store")).objects.put("../outside/mine.txt", b"other")
    assert (place / "outside/mine.txt").read_text() == "mine"


def test_a_pipe_does_not_wait(place: Path) -> None:
    os.mkfifo(place / "store/record.json")
    with pytest.raises(StoreError, match="neither a file nor a folder"):
        Store(str(place / "store")).objects.get_json("record.json")


def test_results_are_not_published_through_a_link(finished: Finished, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = finished.copy(place / "copy")
    results = store / "results/toy"
    results.rename(place / "kept")
    results.symlink_to(place / "outside")
    with pytest.raises(StoreError, match=REFUSED):
        gr.run(finished.file, store=str(store), serial=True)
    assert isinstance(CliRunner().invoke(app, ["report", "toy", "--store", str(store)]).exception, StoreError)
    assert [found.name for found in (place / "outside").iterdir()] == ["mine.txt"]


def test_a_database_that_sends_files_elsewhere(tmp_path: Path) -> None:
    location = (tmp_path / "mlflow-artifacts").as_uri()
    for of_experiment, of_run in ((location, f"{location}/1/abc"), (str(tmp_path), location), (location, f"{location}/../x")):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE experiments (experiment_id, name, artifact_location)")
            connection.execute("CREATE TABLE runs (experiment_id, artifact_uri)")
            connection.execute("INSERT INTO experiments VALUES (1, 'genrep/toy', ?)", (of_experiment,))
            connection.execute("INSERT INTO runs VALUES (1, ?)", (of_run,))
        if of_run == f"{location}/1/abc":
            require_location(path, location)
        else:
            with pytest.raises(StoreError, match="keeps files outside the store"):
                require_location(path, location)
