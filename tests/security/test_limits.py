"""Files of others that claim more than a machine has are refused by name, at once, and before anything large is allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

import genrep_dist as gr
from genrep_dist.errors import ConfigError, CorruptError, GenRepError, StoreError
from genrep_dist.limits import LimitError, parse_json, require_fits
from genrep_dist.store import Store
from genrep_dist.store.tables import get_table, scan_frame
from tests.external.files import load

HUGE = 10**12


@pytest.fixture(autouse=True)
def nothing_large_and_nothing_slow() -> Iterator[None]:
    began, before = time.monotonic(), psutil.Process().memory_info().rss
    yield
    assert time.monotonic() - began < 20
    assert psutil.Process().memory_info().rss - before < 2**29


def npy(shape: tuple[int, ...], data: bytes = b"", dtype: str = "<f8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue() + data


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def zarr_array(path: Path, shape: list[int], chunks: list[int], **fields: Any) -> None:
    zarr.create_array(str(path), shape=(7, 2), chunks=(7, 2), dtype="float64")
    record = json.loads((path / "zarr.json").read_text())
    record["shape"], record["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunks
    (path / "zarr.json").write_text(json.dumps(record | fields))


def zarr_pickled(path: Path) -> None:
    path.mkdir()
    record = {"zarr_format": 2, "shape": [7, 2], "chunks": [7, 2], "order": "C", "fill_value": None, "compressor": None}
    (path / ".zarray").write_text(json.dumps(record | {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}))
    (path / "0.0").write_bytes(pickle.dumps(RunsCode(str(path.parent / "it-ran"))))


class RunsCode:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def zarr_links(path: Path) -> None:
    zarr.create_group(str(path))
    for name in "abc":
        (path / name).symlink_to(path)


def lists_of_lists() -> dict[str, Any]:
    found: Any = [1, 2]
    for _ in range(40):
        found = [found, found]
    return {"scores": torch.zeros(7, 2), "train_ids": found}


def sparse(path: Path) -> None:
    path.write_bytes(npy((7, 10**11)))
    os.truncate(path, 128 + 56 * 10**11)


def zarr_brackets(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_text("[" * 10**5)


def wide_pairs(path: Path) -> None:
    count = 300_000
    pq.write_table(pa.table({"train_id": range(count), "test_id": range(count), "score": np.zeros(count)}), path)


SCORES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "npy: columns that are not there": (".npy", lambda path: path.write_bytes(npy((7, HUGE)))),
    "npy: a sparse file": (".npy", sparse),
    "npy: a header of brackets": (".npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000)),
    "npz: columns that are not there": (".npz", lambda path: npz(path, scores=npy((7, HUGE)))),
    "npz: zeros, compressed": (".npz", lambda path: npz(path, scores=npy((HUGE, HUGE), bytes(10**7)))),
    "npz: ids": (".npz", lambda path: npz(path, scores=npy((7, 2), bytes(112)), train_ids=npy((HUGE,), dtype="<i8"))),
    "npz: a model": (".npz", lambda path: npz(path, scores=npy((7, 2), bytes(112)), model=npy((), dtype="<U1000000000000"))),
    "pt: a number repeated": (".pt", lambda path: torch.save(torch.zeros(1).expand(7, 10**11), path)),
    "pt: lists of lists": (".pt", lambda path: torch.save(lists_of_lists(), path)),
    "parquet: pairs of which most are missing": (".parquet", wide_pairs),
    "zarr: columns that are not there": (".zarr", lambda path: zarr_array(path, [7, HUGE], [7, 2])),
    "zarr: ids": (".zarr", lambda path: zarr_array(path, [HUGE], [HUGE])),
    "zarr: a chunk": (".zarr", lambda path: zarr_array(path, [7, 2], [10**6, 10**6])),
    "zarr: attributes of brackets": (".zarr", zarr_brackets),
    "zarr: links in a circle": (".zarr", zarr_links),
    "zarr: pickled objects": (".zarr", zarr_pickled),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores(tmp_path: Path, name: str) -> None:
    suffix, write = SCORES[name]
    path = tmp_path / f"a{suffix}"
    write(path)
    with pytest.raises(GenRepError) as refused:
        load(path, unverified=True)
    assert str(path) in str(refused.value)
    assert "Error: object" not in str(refused.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_sidecar_and_an_export(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((7, 2)))
    (tmp_path / "a.npy.json").write_text("[" * 10**5)
    with pytest.raises(ConfigError, match=r"a\.npy\.json"):
        load(tmp_path / "a.npy", unverified=True)
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0/problem.json").write_text('{"a":' * 10**5)
    with pytest.raises(CorruptError, match=r"problem\.json"):
        gr.open_exported(tmp_path, 0)


def aliases(merge: str) -> str:
    """Each line stands for ten of the line before."""
    lines = ["a0: &a0 {x: [1, 1, 1, 1]}"]
    for number in range(1, 10):
        ten = ", ".join([f"*a{number - 1}"] * 10)
        lines.append(f"a{number}: &a{number} {{{merge}: [{ten}]}}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        aliases("x"),
        aliases("<<"),
        "name: " + "[" * 2000,
        "name: &a [*a]",
        "name: " + ":".join(["1"] * 20_000),
        "seeds: 0x" + "F" * 20_000,
        "name: x\n" * 10**6,
        "name: a\nproblem: {name: digits}\nmethods: [random]\nseeds: 1000000000000\n",
        "name: a\nproblem: {name: digits}\nmethods: [random]\nstop: {half_width: 1, max_seeds: 1000000000000}\n",
    ],
    ids=["aliases", "merged aliases", "brackets", "itself", "base 60", "digits", "long", "seeds", "stop"],
)
def test_experiments(tmp_path: Path, text: str) -> None:
    (tmp_path / "experiment.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        gr.load_experiment(tmp_path / "experiment.yaml")
    assert len(str(refused.value)) < 2000


def test_records_of_a_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for text in ("[" * 10**5, '{"a":' * 10**5, "\xff"):
        store.objects.put("a.json", text.encode("latin-1"))
        with pytest.raises(CorruptError, match=r"a\.json"):
            store.objects.get_json("a.json")
    with pytest.raises(LimitError):
        parse_json(b"[" * 10**6)


def test_a_table_that_stands_for_more_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    pq.write_table(pa.table({"x": np.zeros(10**6)}), tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr("genrep_dist.limits.SMALL_BYTES", 10**5)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**6}))
    for read in (get_table, scan_frame):
        with pytest.raises(CorruptError, match=r"a\.parquet[\s\S]*bytes of memory are free"):
            read(store.objects, "a.parquet")


def test_an_array_of_a_store(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("kernel", "ab" * 32)
    artifact.write("phi", np.zeros((2, 2)), ("train", "test"))
    artifact.commit({})
    # As an artifact of an earlier version, or one whose manifest was changed too: its digests would be seen first.
    objects, manifest = Store(str(tmp_path)).objects, artifact.paths.manifest
    objects.put_json(manifest, {name: value for name, value in objects.get_json(manifest).items() if name != "metadata_sha256"})
    path = tmp_path / artifact.path / "phi/zarr.json"
    for shape, chunks in (([HUGE, 2], [HUGE, 2]), ([HUGE, 2], [2, 2]), ([2, 2], [HUGE, 2])):
        record = json.loads(path.read_text())
        record["shape"], record["chunk_grid"]["configuration"]["chunk_shape"] = shape, chunks
        path.write_text(json.dumps(record))
        with pytest.raises(StoreError, match="phi"):
            artifact.read("phi")


def test_free_memory_decides() -> None:
    require_fits(1, "a number")
    with pytest.raises(LimitError, match="a number takes"):
        require_fits(10**15, "a number")
