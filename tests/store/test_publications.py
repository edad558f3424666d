"""Publications: the one with the highest number counts, whatever a driver does that has slept through its lease."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store.objects import Objects
from genrep_dist.store.publications import NUMBERS_KEPT, Publications

FILES = ["summary.parquet", "deletion.parquet", "table.md"]


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path))


def content(question: str, name: str) -> bytes:
    return f"{name} of {question}".encode()


def publish(objects: Objects, number: int, question: str, confirm: Callable[[], object] = lambda: None) -> None:
    publications = Publications(objects, "toy")
    for name in FILES:
        objects.put(publications.staged(number).file(name), content(question, name))
    publications.publish(number, {"question": question}, FILES, confirm)


def visible(objects: Objects) -> str:
    """The question whose results are visible, each file with the digest that its manifest states."""
    publications = Publications(objects, "toy")
    manifest = publications.manifest()
    assert manifest is not None
    for name, digest in {**manifest["tables"], **manifest["files"]}.items():
        data = objects.get(publications.find(manifest, name))
        assert data == content(manifest["question"], name)
        assert hashlib.sha256(data).hexdigest() == digest
    return str(manifest["question"])


def test_the_last_one_is_visible_and_older_records_go(objects: Objects) -> None:
    assert Publications(objects, "toy").manifest() is None
    for number in range(1, 6):
        publish(objects, number, f"q{number}")
        assert visible(objects) == f"q{number}"
    manifest = Publications(objects, "toy").manifest()
    assert Publications(objects, "toy").faults(manifest or {}) == []
    assert len(objects.list("experiments/toy/publications")) == NUMBERS_KEPT
    assert objects.get_json("results/toy/manifest.json") == manifest


def test_who_was_passed_before_it_published_changes_nothing(objects: Objects) -> None:
    publish(objects, 7, "second")
    with pytest.raises(StoreError, match="another driver has published"):
        publish(objects, 6, "first")
    assert visible(objects) == "second"


def test_who_is_passed_after_its_last_look_changes_nothing(objects: Objects) -> None:
    """Its record becomes visible to nobody."""
    with pytest.raises(StoreError, match="another driver has published"):
        publish(objects, 6, "first", confirm=lambda: publish(objects, 7, "second"))
    assert visible(objects) == "second"
    assert Publications(objects, "toy").faults(Publications(objects, "toy").manifest() or {}) == []


@pytest.mark.parametrize("which", range(len(FILES)))
def test_who_falls_asleep_while_its_files_are_moved_is_never_mixed_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """In the worst moment: after the look at the numbers, before the move. That file is not what the manifest says, which is seen."""
    sleeper, other = Objects(str(tmp_path)), Objects(str(tmp_path))
    move, moved = sleeper.move, list[str]()

    def slow(path: str, to: str) -> None:
        if len(moved) == which:
            publish(other, 7, "second")
        moved.append(to)
        move(path, to)

    monkeypatch.setattr(sleeper, "move", slow)
    with pytest.raises(StoreError, match="another driver has published"):
        publish(sleeper, 6, "first")
    publications = Publications(other, "toy")
    manifest = publications.manifest()
    assert manifest is not None
    assert manifest["question"] == other.get_json("results/toy/manifest.json")["question"] == "second"
    assert set(publications.faults(manifest)) <= {moved[-1]}
    publish(other, 8, "third")
    assert visible(other) == "third"


def test_who_falls_asleep_before_it_writes_the_manifest_restores_the_later_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper, other = Objects(str(tmp_path)), Objects(str(tmp_path))
    put_json = sleeper.put_json

    def sleeping(path: str, document: Any) -> None:
        if path == "results/toy/manifest.json" and document["question"] == "first":
            publish(other, 7, "second")
        put_json(path, document)

    monkeypatch.setattr(sleeper, "put_json", sleeping)
    with pytest.raises(StoreError, match="another driver has published"):
        publish(sleeper, 6, "first")
    assert visible(other) == "second"
    publications = Publications(other, "toy")
    assert publications.faults(publications.manifest() or {}) == []


def test_every_file_is_found_while_they_are_moved(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(objects, 1, "first")
    move, seen = objects.move, list[str]()

    def watched(path: str, to: str) -> None:
        seen.append(visible(objects))
        move(path, to)

    monkeypatch.setattr(objects, "move", watched)
    publish(objects, 2, "second")
    assert seen == ["second"] * len(FILES)


def test_results_of_an_earlier_version_and_deleted_ones(objects: Objects) -> None:
    old: dict[str, Any] = {"question": "old", "tables": {}}
    objects.put_json("results/toy/manifest.json", old)
    assert Publications(objects, "toy").manifest() == old
    publish(objects, 3, "new")
    assert visible(objects) == "new"
    objects.delete("results/toy/manifest.json")
    assert Publications(objects, "toy").manifest() is None, "whoever deletes it wants them made again"


def test_a_damaged_record_is_named(objects: Objects, tmp_path: Path) -> None:
    publish(objects, 3, "new")
    path = tmp_path / "experiments/toy/publications/000000000003.json"
    path.write_text(path.read_text().replace("new", "now"))
    with pytest.raises(CorruptError, match=r"publications/000000000003\.json"):
        Publications(objects, "toy").manifest()
