"""Chunk files that are written and read without Zarr are Zarr's own, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec

from genrep_dist.errors import CorruptError, StoreError
from genrep_dist.store import Store, chunks
from genrep_dist.store.artifacts import Artifact
from genrep_dist.store.chunks import checksum, first_non_finite, read_chunk, read_window, write_chunk

KEY = "cd" * 32


def by_zarr(folder: Path, values: np.ndarray[Any, Any], grid: tuple[int, ...]) -> zarr.Array[Any]:
    array = zarr.create_array(
        folder,
        shape=values.shape,
        chunks=grid,
        dtype=str(values.dtype),
        fill_value=float("nan") if values.dtype.kind == "f" else 0,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[...] = values
    return array


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_a_file_is_the_one_that_zarr_writes(tmp_path: Path, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    by_zarr(tmp_path / "zarr", values, (3, 5))
    crc = write_chunk(tmp_path / "ours" / "0", values)
    assert (tmp_path / "ours" / "0").read_bytes() == (tmp_path / "zarr" / "c" / "0" / "0").read_bytes()
    assert crc == checksum(values)
    np.testing.assert_array_equal(read_chunk(tmp_path / "ours" / "0", (3, 5), np.dtype(dtype)), values)
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["0"]


def test_zarr_reads_an_artifact_and_writes_one_that_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(10, 3, 4)).astype(np.float32)
    artifact = Store(str(tmp_path)).artifact("features", KEY)
    artifact.create("features", values.shape, (4, 3, 4), "float32", ("train", "output", "parameter"))
    for start in (0, 4, 8):
        artifact.write_part(f"rows-{start}", "features", (start, 0, 0), values[start : start + 4])
    theirs = zarr.open_array(tmp_path / artifact.path / "features", mode="r+")
    np.testing.assert_array_equal(theirs[...], values)
    theirs[4:8] = 2 * values[4:8]
    artifact.commit({})
    np.testing.assert_array_equal(artifact.read("features")[4:8], 2 * values[4:8])


slices = st.builds(slice, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9))


@given(window=st.tuples(slices, slices), grid=st.tuples(st.integers(1, 8), st.integers(1, 6)), missing=st.booleans())
def test_any_window_is_what_zarr_reads(tmp_path_factory: pytest.TempPathFactory, window: Any, grid: Any, missing: bool) -> None:
    folder = tmp_path_factory.mktemp("array")
    array = by_zarr(folder, np.arange(35, dtype=np.float32).reshape(7, 5), grid)
    if missing:
        (folder / "c" / "0" / "0").unlink()
    ours = read_window(folder / "c", array.shape, array.chunks, array.dtype, array.fill_value, window)
    np.testing.assert_array_equal(ours, array[window])
    if missing and ours.size and np.isnan(ours).any():
        with pytest.raises(ValueError, match="c/0/0 does not exist"):
            read_window(folder / "c", array.shape, array.chunks, array.dtype, None, window)
    assert ours.flags.c_contiguous
    assert ours.flags.writeable


def test_a_mapped_chunk_is_its_readers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MAPPED_BYTES", 10)
    values = np.random.default_rng(0).normal(size=(40, 50))
    write_chunk(tmp_path / "0", values)
    read = read_chunk(tmp_path / "0", values.shape, values.dtype)
    read[3] = 0
    np.testing.assert_array_equal(read_chunk(tmp_path / "0", values.shape, values.dtype), values)
    again = read_chunk(tmp_path / "0", values.shape, values.dtype)
    write_chunk(tmp_path / "0", 2 * values)
    (tmp_path / "0").unlink()
    np.testing.assert_array_equal(again, values)
    assert np.array_equal(read[4:], values[4:])
    write_chunk(tmp_path / "0", values)
    data = bytearray((tmp_path / "0").read_bytes())
    data[777] ^= 1
    (tmp_path / "0").write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        read_chunk(tmp_path / "0", values.shape, values.dtype)


def test_large_chunks_go_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(chunks, "CHECK_BYTES", 300)
    values = np.random.default_rng(0).normal(size=(40, 50))
    write_chunk(tmp_path / "0", values)
    np.testing.assert_array_equal(read_chunk(tmp_path / "0", values.shape, values.dtype), values)
    assert first_non_finite(values) is None
    values[30, 7] = np.inf
    assert first_non_finite(values) == (30, 7)
    assert first_non_finite(values.T) == (7, 30)


@pytest.mark.parametrize("harm", ["flipped", "short", "long", "no checksum", "empty"])
def test_damage_is_an_error(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "0"
    write_chunk(path, np.arange(12.0))
    data = path.read_bytes()
    flipped = data[:17] + bytes([data[17] ^ 8]) + data[18:]
    path.write_bytes({"flipped": flipped, "short": data[8:], "long": data + b"0", "no checksum": data[:-4], "empty": b""}[harm])
    with pytest.raises(ValueError, match=r"bytes instead of|checksum"):
        read_chunk(path, (12,), np.dtype(np.float64))


def feature_artifact(folder: Path) -> Artifact:
    artifact = Store(str(folder)).artifact("features", KEY)
    artifact.create("features", (4, 3), (4, 3), "float32", ("train", "feature"))
    return artifact


def test_a_disk_that_keeps_other_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = feature_artifact(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(len(data))))
    with pytest.raises(CorruptError, match="read back differs"):
        artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    monkeypatch.undo()
    assert artifact.parts_done() == set()
    assert not [path for path in (tmp_path / artifact.path / "features" / "c").rglob("*") if path.is_file()]


def test_the_block_is_synced_and_in_place_before_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = feature_artifact(tmp_path)
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(handle: int) -> None:
        events.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.partition("#")[0])
        sync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append(f"rename {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    order = [events.index(event) for event in ("sync 0", "rename 0", "sync rows-0.json", "rename rows-0.json")]
    assert order == sorted(order)
    # The folder that holds the name is synced after the renaming.
    assert "sync 0" in events[order[1] :]


def test_what_the_disk_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = feature_artifact(tmp_path)

    def full(handle: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left"):
        artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    assert not [path for path in (tmp_path / artifact.path / "features" / "c").rglob("*") if path.is_file()]


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = feature_artifact(tmp_path)
    artifact.write_part("rows-0", "features", (0, 0), np.ones((4, 3), dtype=np.float32))
    artifact.commit({})

    def broken(handle: int, buffers: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", broken)
    with pytest.raises(StoreError, match=r"cannot be read[\s\S]*Input/output error"):
        artifact.read("features")
