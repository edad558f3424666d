"""Conformance tests of a place for stores: a folder of some file system, or a bucket of some service.

.. code-block:: python

    from genrep_dist.testing import StoreTests

    class TestMyBucket(StoreTests):
        @pytest.fixture
        def uri(self):
            return f"s3://bucket/tests/{uuid.uuid4()}"
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from genrep_dist.errors import CorruptError, DamagedArtifact, DamagedFile, NonFiniteError, NotCommittedError, StoreError
from genrep_dist.store import Store
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.damaged import move_damaged
from genrep_dist.store.lease import Lease
from genrep_dist.store.ledger import LedgerRow
from genrep_dist.store.objects import Objects
from genrep_dist.store.publications import Publications
from genrep_dist.store.tables import put_frame, scan_frame

Array = npt.NDArray[Any]
KEY = "ab" * 32
ODD_NAMES = ["with space", "accents-é-ü-中", "a+b=c&d;e,f", "50%", "%20", "two..dots", "UPPER.lower", "x" * 200, "quote'", "a/deep/er/path"]
DTYPES = ["float16", "float32", "float64", "int32", "int64", "uint8", "bool"]
ARRAYS: dict[str, Array] = {
    "numbers": np.arange(-7, 23).reshape(10, 3),
    "zeros": np.zeros((6, 2)),
    "ones": np.ones((2, 2, 2)),
    "one element": np.array([3]),
    "no dimension": np.array(5),
    "no rows": np.zeros((0, 3)),
    "no columns": np.zeros((3, 0)),
    "empty": np.zeros(0),
}


class StoreTests:
    """The contract of a place for stores. A subclass defines the fixture ``uri``: the address of an empty place."""

    @pytest.fixture
    def uri(self) -> str:
        raise NotImplementedError("a subclass of StoreTests must define the fixture `uri`")

    @pytest.fixture
    def store(self, uri: str) -> Store:
        return Store(uri)

    @pytest.fixture
    def objects(self, store: Store) -> Objects:
        return store.objects

    # -- files -----------------------------------------------------------------------------------------------------------------

    def test_access_can_be_checked_and_leaves_nothing(self, objects: Objects) -> None:
        objects.check_access()
        assert objects.list("") == []

    @pytest.mark.parametrize("data", [b"", b"one", bytes(range(256)) * 40_000], ids=["empty", "small", "large"])
    def test_a_file_is_written_replaced_and_read(self, objects: Objects, uri: str, data: bytes) -> None:
        objects.put("a/b", data)
        assert objects.get("a/b") == data
        objects.put("a/b", b"new")
        assert Objects(uri).get("a/b") == b"new"

    def test_a_missing_file(self, objects: Objects) -> None:
        assert not objects.exists("a/b")
        with pytest.raises(FileNotFoundError):
            objects.get("a/b")
        with pytest.raises(FileNotFoundError):
            objects.move("a/b", "c")
        objects.delete("a/b")
        assert objects.list("a") == []

    def test_files_are_listed_by_folder(self, objects: Objects) -> None:
        for path in ("a/2", "a/1", "a/x/3", "ab/4", "b"):
            objects.put(path, b"")
        assert objects.list("a") == ["a/1", "a/2", "a/x/3"]
        assert objects.list("") == ["a/1", "a/2", "a/x/3", "ab/4", "b"]

    def test_files_and_folders_are_deleted_and_moved(self, objects: Objects) -> None:
        for path in ("a/1", "a/x/2", "ab/3"):
            objects.put(path, path.encode())
        objects.move("a/1", "d/1")
        assert objects.get("d/1") == b"a/1"
        objects.delete_folder("a")
        objects.delete_folder("a")
        objects.delete("d/1")
        assert objects.list("") == ["ab/3"]
        assert not objects.exists("a/x/2")

    def test_a_file_is_created_once(self, objects: Objects) -> None:
        created: list[bool] = []
        threads = [threading.Thread(target=lambda n=n: created.append(objects.create("a/once", str(n).encode()))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(created) == [False] * 7 + [True]
        content = objects.get("a/once")
        assert not objects.create("a/once", b"other")
        assert objects.get("a/once") == content

    def test_times_of_files_are_of_the_stores_own_clock(self, objects: Objects) -> None:
        before = objects.now()
        objects.put("a", b"1")
        assert before - 1 <= objects.modified("a") <= objects.now() + 1
        assert objects.list("") == ["a"]
        with pytest.raises(FileNotFoundError):
            objects.modified("b")

    def test_readers_see_whole_files_while_one_is_replaced(self, objects: Objects) -> None:
        versions = [bytes([n]) * 300_000 for n in range(6)]
        objects.put("a", versions[0])
        stop, torn = threading.Event(), list[int]()

        def read() -> None:
            while not stop.is_set():
                found = objects.get("a")
                if found not in versions:
                    torn.append(len(found))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for version in versions * 3:
                objects.put("a", version)
        finally:
            stop.set()
            reader.join()
        assert torn == []

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_names(self, objects: Objects, name: str) -> None:
        objects.put(f"folder/{name}", b"1")
        assert objects.list("folder") == [f"folder/{name}"]
        assert objects.exists(f"folder/{name}")
        assert objects.get(f"folder/{name}") == b"1"
        assert not objects.create(f"folder/{name}", b"2")
        objects.delete(f"folder/{name}")
        assert objects.list("folder") == []

    def test_json(self, objects: Objects) -> None:
        objects.put_json("a.json", {"b": [1, 2.5, None], "a": "é"})
        assert objects.get_json("a.json") == {"a": "é", "b": [1, 2.5, None]}
        for damaged in (b"{half", b"\xff\xfe"):
            objects.put("a.json", damaged)
            with pytest.raises(CorruptError, match=r"a\.json") as caught:
                objects.get_json("a.json")
            assert caught.value.damaged == DamagedFile("a.json")

    # -- artifacts -------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
    def test_an_array_is_written_and_read(self, store: Store, uri: str, values: Array, dtype: str) -> None:
        values = values.astype(dtype)
        artifact = store.artifact("tests", KEY)
        names = tuple("abc"[: values.ndim])
        artifact.write("values", values, names, {"note": "kept"})
        artifact.commit({"seed": 3})
        again = Store(uri).artifact("tests", KEY)
        found = again.read("values")
        assert (found.dtype, found.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(found, values)
        assert again.attributes("values") == {"note": "kept"}
        assert again.manifest()["seed"] == 3
        assert again.is_committed()
        assert again.is_intact()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_an_array_is_written_in_parts(self, store: Store, uri: str, dtype: str) -> None:
        values = np.arange(30).reshape(10, 3).astype(dtype)
        artifact = declare(store, dtype)
        for start in (8, 0, 4, 4):  # a part may be written twice
            artifact.write_part(f"rows-{start}", "values", (start, 0), values[start : start + 4], seconds=0.5)
        assert artifact.parts_done() == {"rows-0", "rows-4", "rows-8"}
        artifact.commit({"seconds": 1.0}, ["rows-0", "rows-4", "rows-8"])
        again = Store(uri).artifact("tests", KEY)
        np.testing.assert_array_equal(again.read("values"), values)
        np.testing.assert_array_equal(again.read("values", (slice(3, 9), slice(1, 2))), values[3:9, 1:2])
        np.testing.assert_array_equal(again.reader("values").read(slice(3, 9)), values[3:9])
        assert again.seconds() == 2.5
        assert again.damaged_parts() == {}

    def test_an_array_is_written_again_beside_others(self, store: Store, uri: str) -> None:
        for _ in range(2):
            artifact = Store(uri).artifact("tests", KEY)
            for name, values in ARRAYS.items():
                artifact.write(name, values, tuple("abc"[: values.ndim]))
        artifact.commit({})
        for name, values in ARRAYS.items():
            np.testing.assert_array_equal(store.artifact("tests", KEY).read(name), values)

    def test_zeros_are_written_in_parts(self, store: Store, uri: str) -> None:
        for dtype in DTYPES:
            artifact = store.artifact("tests", KEY)
            artifact.create(dtype, (10, 3), (4, 3), dtype, ("row", "column"))
            for start in (0, 4, 8):
                artifact.write_part(f"{dtype}-{start}", dtype, (start, 0), np.zeros((min(4, 10 - start), 3), dtype))
        artifact.commit({})
        again = Store(uri).artifact("tests", KEY)
        assert again.damaged_parts() == {}
        assert not any(again.read(dtype).any() for dtype in DTYPES)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_non_finite_numbers_are_refused(self, store: Store, bad: float) -> None:
        artifact = declare(store)
        values = np.ones((4, 3), dtype=np.float32)
        values[2, 1] = bad
        with pytest.raises(NonFiniteError, match=r"at \(2, 1\)"):
            artifact.write_part("rows-0", "values", (0, 0), values)
        assert artifact.parts_done() == set()
        with pytest.raises(NonFiniteError, match=r"at \(2, 1\)"):
            store.artifact("tests", "cd" * 32).write("values", values, ("a", "b"))
        state = store.artifact("tests", "ef" * 32)
        state.write("values", values, ("a", "b"), require_finite=False)
        state.commit({})
        np.testing.assert_array_equal(state.read("values"), values)

    def test_an_artifact_is_read_after_its_commit_only(self, store: Store) -> None:
        artifact = declare(store)
        artifact.write_part("rows-0", "values", (0, 0), np.ones((4, 3), dtype=np.float32))
        for read in (lambda: artifact.read("values"), lambda: artifact.reader("values"), artifact.manifest):
            with pytest.raises(NotCommittedError, match="1 recorded parts and no manifest"):
                read()
        with pytest.raises(NotCommittedError, match="2 missing, first rows-4"):
            artifact.commit({}, ["rows-0", "rows-4", "rows-8"])
        assert not artifact.is_committed()
        assert not artifact.is_intact()

    def test_a_missing_chunk_is_never_zero(self, store: Store) -> None:
        for dtype in ("float32", "int64"):
            artifact = declare(store, dtype)
            artifact.write_part("rows-0", "values", (0, 0), np.ones((4, 3), dtype=dtype))
            artifact.commit({})  # too early
            np.testing.assert_array_equal(artifact.read("values", (slice(0, 4), slice(None))), 1)
            with pytest.raises(CorruptError, match="does not exist"):
                artifact.read("values")

    def test_another_grid_deletes_the_parts(self, store: Store) -> None:
        artifact = declare(store)
        artifact.write_part("rows-0", "values", (0, 0), np.ones((4, 3), dtype=np.float32))
        declare(store)
        assert artifact.parts_done() == {"rows-0"}
        artifact.create("values", (10, 3), (5, 3), "float32", ("row", "column"))
        assert artifact.parts_done() == set()
        with pytest.raises(StoreError, match="a part is not one chunk of its array"):
            artifact.write_part("rows-0", "values", (0, 0), np.ones((4, 3), dtype=np.float32))

    def test_arrays_that_do_not_exist(self, store: Store) -> None:
        artifact = store.artifact("tests", KEY)
        with pytest.raises(StoreError, match="no such array"):
            artifact.attributes("values")
        artifact.write("values", np.ones(3), ("a",))
        artifact.commit({})
        with pytest.raises(CorruptError, match="an array of a finished artifact is gone"):
            artifact.read("others")

    @pytest.mark.parametrize("harm", ["flipped", "truncated", "empty", "deleted"])
    def test_only_a_damaged_part_is_moved_away(self, store: Store, objects: Objects, harm: str) -> None:
        artifact = declare(store)
        for start in (0, 4, 8):
            artifact.write_part(f"rows-{start}", "values", (start, 0), np.ones((min(4, 10 - start), 3), dtype=np.float32))
        artifact.commit({}, ["rows-0", "rows-4", "rows-8"])
        path = artifact.paths.chunk("values", (1, 0))
        data = bytearray(objects.get(path))
        data[5] ^= 1
        if harm == "deleted":
            objects.delete(path)
        else:
            objects.put(path, {"flipped": bytes(data), "truncated": bytes(data[:-3]), "empty": b""}[harm])
        fresh = store.artifact("tests", KEY)
        with pytest.raises(CorruptError) as caught:
            fresh.read("values")
        assert caught.value.damaged == DamagedArtifact("tests", KEY)
        assert set(fresh.damaged_parts()) == {"rows-4"}
        assert "1 of 3 parts" in move_damaged(objects, caught.value.damaged)
        assert not fresh.is_intact()
        assert fresh.parts_done() == {"rows-0", "rows-8"}

    # -- tables, the ledger, leases --------------------------------------------------------------------------------------------

    def test_tables(self, objects: Objects) -> None:
        frame = pl.DataFrame({"name": ["a", "b"], "number": [1.5, None]})
        put_frame(objects, "a/table.parquet", frame, table="tests", nullable=["number"])
        assert scan_frame(objects, "a/table.parquet").collect().equals(frame)
        with pytest.raises(StoreError, match="no such table"):
            scan_frame(objects, "a/other.parquet")

    def test_the_ledger(self, store: Store, objects: Objects, uri: str) -> None:
        ledger = store.ledger("training")
        assert ledger.keys() == set()
        paths = [ledger.write([LedgerRow(key, 0, "same", 0, (1, 2), np.ones((4, 1)), 0.25)]) for key in "abc"]
        assert Store(uri).ledger("training").keys() == {"a", "b", "c"}
        assert ledger.scan().filter(pl.col("key") > "a").select(pl.col("num_removed").sum()).collect().item() == 4
        objects.put(paths[0], objects.get(paths[0])[:-8])
        (moved,) = ledger.move_damaged_parts()
        assert moved.path == paths[0]
        assert objects.exists(moved.moved_to)
        assert ledger.compact().parts_after == 1
        assert ledger.keys() == {"b", "c"}

    def test_the_publication_with_the_highest_number_counts(self, objects: Objects) -> None:
        def publish(number: int) -> None:
            publications = Publications(objects, "tests")
            objects.put(publications.staged(number).file("table.md"), str(number).encode())
            publications.publish(number, {"question": str(number)}, ["table.md"], lambda: None)

        publish(1)
        publish(3)
        with pytest.raises(StoreError, match="another driver has published"):
            publish(2)
        found = Publications(objects, "tests").manifest()
        assert found is not None
        assert found["question"] == "3"
        assert Publications(objects, "tests").faults(found) == []

    def test_a_lease_has_one_holder(self, objects: Objects) -> None:
        waits: list[str] = []
        with Lease(objects, "lease") as held:
            other = threading.Thread(target=lambda: Lease(objects, "lease", waits.append).__enter__().__exit__(None, None, None))
            other.start()
            other.join(timeout=1.0)
            assert other.is_alive()
            held.confirm()
        other.join(timeout=30)
        assert not other.is_alive()
        assert len(waits) == 1


def declare(store: Store, dtype: str = "float32") -> Artifact:
    """An artifact with the array ``values`` (10, 3), in parts of 4 rows."""
    artifact = store.artifact("tests", KEY)
    artifact.create("values", (10, 3), (4, 3), dtype, ("row", "column"))
    return artifact
