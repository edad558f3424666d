"""Stores in a local folder: durability, and errors of the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genrep_dist.errors import StoreError
from genrep_dist.store import Store
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.store.objects import Objects

KEY = "ab" * 32
BLOCK = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be created"):
        Store(str(tmp_path / "file" / "store"))


def test_the_leftover_of_an_interrupted_write_is_not_listed(tmp_path: Path) -> None:
    objects = Objects(str(tmp_path))
    objects.put("a/b.json", b"1")
    (tmp_path / "a" / "b.json#1").write_bytes(b"half")
    assert objects.list("a") == ["a/b.json"]


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    assert store.objects.root == tmp_path / "store" == store.objects.local_path("")
    store.objects.check_access()
    assert list(store.objects.root.iterdir()) == []


def test_a_folder_that_became_unusable(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match=r"cannot be written[\s\S]*store"):
        store.objects.check_access()


@dataclass
class Synced:
    """Files and folders in the order in which they were synced, by inode, which a rename keeps."""

    inodes: list[int]

    def order(self, path: Path | None) -> int:
        assert path is not None
        return self.inodes.index(path.stat().st_ino)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    found = Synced([])
    real = os.fsync

    def fsync(handle: int) -> None:
        found.inodes.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_put_is_synced_and_so_are_its_folders(synced: Synced, tmp_path: Path) -> None:
    place = Objects(str(tmp_path))
    place.put("a/b/c", b"1")
    places = [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    assert {path.stat().st_ino for path in places} == set(synced.inodes)
    assert synced.order(places[0]) < synced.order(places[1])
    synced.inodes.clear()
    place.put("a/b/c", b"2")
    assert len(synced.inodes) == 2


def test_a_block_is_on_the_disk_before_its_record(synced: Synced, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = store.artifact("features", KEY)
    artifact.create("features", (200, 1000), BLOCK.shape, "float32", ("train", "feature"))
    artifact.write_part("rows-0", "features", (0, 0), BLOCK)
    folder = store.objects.local_path(artifact.path)
    assert folder is not None
    block, record = folder / "features" / "c" / "0" / "0", folder / "parts" / "rows-0.json"
    metadata = max(synced.order(folder / "zarr.json"), synced.order(folder / "features" / "zarr.json"))
    assert metadata < synced.order(block) < synced.order(block.parent) < synced.order(record) < synced.order(record.parent)
    synced.inodes.clear()
    artifact.write_part("rows-100", "features", (100, 0), BLOCK)
    assert len(synced.inodes) <= 12
    artifact.commit({}, ["rows-0", "rows-100"])
    assert synced.order(folder / "manifest.json") > synced.order(folder / "parts" / "rows-100.json")


def test_a_whole_artifact_is_on_the_disk_before_its_manifest(synced: Synced, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = store.artifact("train", KEY)
    for name in ("epochs", "rates"):
        artifact.write(name, np.ones(3), ("checkpoint",))
    assert synced.inodes == []
    artifact.commit({})
    folder = store.objects.local_path(artifact.path)
    assert folder is not None
    manifest = folder / "manifest.json"
    everything = [path for path in folder.rglob("*") if path != manifest]
    assert len(everything) >= 5
    assert all(synced.order(path) < synced.order(manifest) for path in everything)


def test_a_ledger_part_is_synced(synced: Synced, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    path = store.ledger("t").write([LedgerRow(KEY, 0, "same", 0, (), np.ones((2, 1)), 0.1)])
    assert synced.order(store.objects.local_path(path)) >= 0


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    place = Objects(str(tmp_path))
    place.put("a", b"old")

    def failing(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if broken == "fsync" else Path, broken, failing)
    with pytest.raises(StoreError, match=r"cannot be written[\s\S]*No space left"):
        place.put("a", b"new")
    monkeypatch.undo()
    assert place.get("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "variable", [("RAY_JOB_ID", "02000000"), ("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_1"}}')]
)
def test_a_relative_store_in_a_ray_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(*variable)
    with pytest.raises(StoreError, match=r"relative --store in a Ray job[\s\S]*--store /shared/store"):
        Store("store")
    assert list(tmp_path.iterdir()) == []
    assert Store(str(tmp_path / "store")).uri == str(tmp_path / "store")
    monkeypatch.delenv(variable[0])
    assert Store("store").uri == str(tmp_path / "store")
