from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genrep_dist.errors import CorruptError, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def features(store: Store) -> Artifact:
    artifact = store.artifact("features", KEY)
    artifact.create("features", (10, 3), (4, 3), "float32", ("train", "feature"))
    return artifact


def test_parts_are_written_recorded_committed_and_read(store: Store) -> None:
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    artifact = features(store)
    for start in (8, 0, 4):
        artifact.write_part(f"rows-{start}", "features", (start, 0), values[start : start + 4])
    assert artifact.parts_done() == {"rows-0", "rows-4", "rows-8"}
    assert not artifact.is_committed()
    artifact.commit({"seed": 1}, ["rows-0", "rows-4", "rows-8"])
    again = store.artifact("features", KEY)
    np.testing.assert_array_equal(again.read("features"), values)
    np.testing.assert_array_equal(again.reader("features").read(slice(3, 9)), values[3:9])
    assert again.manifest()["seed"] == 1


def test_what_is_not_committed_cannot_be_read(store: Store) -> None:
    artifact = features(store)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    for read in (lambda: artifact.read("features"), lambda: artifact.reader("features"), artifact.manifest):
        with pytest.raises(NotCommittedError, match="1 recorded parts and no manifest"):
            read()


def test_commit_refuses_while_a_part_is_missing(store: Store) -> None:
    artifact = features(store)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    with pytest.raises(NotCommittedError, match="2 missing, first rows-4"):
        artifact.commit({}, ["rows-0", "rows-4", "rows-8"])
    assert not artifact.is_committed()


def test_missing_is_never_zero(store: Store) -> None:
    artifact = features(store)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    artifact.commit({})  # as if somebody had committed too early
    np.testing.assert_array_equal(artifact.read("features", (slice(0, 4), slice(None))), 1.0)
    with pytest.raises(CorruptError, match="does not exist"):
        artifact.read("features")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_stored(store: Store, bad: float) -> None:
    artifact = features(store)
    values = np.ones((4, 3), dtype=np.float32)
    values[2, 1] = bad
    with pytest.raises(NonFiniteError, match=r"at \(2, 1\)"):
        artifact.write_part("rows-0", "features", (0, 0), values)
    assert artifact.parts_done() == set()


def test_a_damaged_file_is_named_not_read(store: Store) -> None:
    artifact = features(store)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    artifact.commit({}, ["rows-0"])
    path = store.objects.local_path(f"{artifact.path}/features/c/0/0")
    assert path is not None
    damaged = bytearray(path.read_bytes())
    damaged[5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptError, match=r"damaged[\s\S]*features, window"):
        artifact.read("features", (slice(0, 2), slice(None)))


def test_declaring_twice_keeps_parts_and_another_grid_deletes_them(store: Store) -> None:
    artifact = features(store)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    features(store)
    assert artifact.parts_done() == {"rows-0"}
    artifact.create("features", (10, 3), (5, 3), "float32", ("train", "feature"))
    assert artifact.parts_done() == set()


def test_writing_a_part_twice_is_harmless(store: Store) -> None:
    artifact = features(store)
    values = np.ones((4, 3), dtype=np.float32)
    for _ in range(2):
        artifact.write_part("rows-0", "features", (0, 0), values)
    artifact.commit({}, ["rows-0"])
    np.testing.assert_array_equal(artifact.read("features", (slice(0, 4), slice(None))), values)


def test_missing_arrays_are_named(store: Store) -> None:
    artifact = store.artifact("train", KEY)
    artifact.write("epochs", np.array([0, 2]), ("checkpoint",), {"note": "kept"})
    artifact.commit({})
    assert artifact.attributes("epochs") == {"note": "kept"}
    with pytest.raises(StoreError, match="an array of a finished artifact is gone"):
        artifact.read("rates")


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be created"):
        Store(str(tmp_path / "file" / "store"))


def test_a_put_is_whole_or_absent(store: Store) -> None:
    objects = store.objects
    objects.put("a/b.json", b"1")
    objects.put("a/b.json", b"22")
    assert objects.get("a/b.json") == b"22"
    root = objects.root
    assert root is not None
    (root / "a" / "b.json#1").write_bytes(b"half")  # what a kill in the middle of a put leaves behind
    assert objects.list("a") == ["a/b.json"]
    assert not objects.exists("a/c.json")
    (root / "a" / "c.json").write_text("{half")
    with pytest.raises(CorruptError, match=r"a/c.json"):
        objects.get_json("a/c.json")
