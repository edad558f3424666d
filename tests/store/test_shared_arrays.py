"""Large data sets are one copy a machine: mapped files, whose numbers are those of the store, and which any process may lose."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import genrep_dist as gr
from genrep_dist.core.inputs import pack_inputs, unpacked
from genrep_dist.problems.tables import data_digest
from genrep_dist.store import Store, shared_arrays
from genrep_dist.workflow import data
from tests.experiments import ROOT, experiment

FORMS: dict[str, Any] = {"values": (np.dtype(np.float32), (6, 2)), "ids": (np.dtype(np.int64), (6,))}
VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENREP_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def parts(counts: list[int]) -> Iterator[dict[str, Any]]:
    counts[0] += 1
    return ({"values": VALUES[at : at + 4], "ids": np.arange(6)[at : at + 4]} for at in (0, 4))


def test_files_are_written_once_and_what_is_changed_is_ones_own() -> None:
    counts = [0]
    first, second = (shared_arrays.shared_arrays("some", FORMS, lambda: parts(counts)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert counts == [1]
    first["values"][0] = -1
    assert np.array_equal(second["values"], VALUES)
    shared_arrays.delete_shared("some")
    assert np.array_equal(second["values"], VALUES), "a mapped file lives on"
    assert shared_arrays.shared_arrays("some", FORMS, lambda: parts(counts)) is not None
    assert counts == [2]


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "gone"])
def test_a_file_that_is_not_whole_is_written_again(scratch: Path, damage: str) -> None:
    counts = [0]
    shared_arrays.shared_arrays("some", FORMS, lambda: parts(counts))
    path = scratch / "some.values.npy"
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        np.save(path, VALUES[:3])
    else:
        path.write_bytes(path.read_bytes()[:-8] if damage == "cut" else b"")
    again = shared_arrays.shared_arrays("some", FORMS, lambda: parts(counts))
    assert again is not None
    assert np.array_equal(again["values"], VALUES)
    assert counts == [2]


def test_without_a_folder_each_process_has_its_own_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENREP_SCRATCH", str(tmp_path / "file" / "below"))
    assert shared_arrays.shared_arrays("some", FORMS, lambda: parts([0])) is None


def test_the_folder_for_temporary_files_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENREP_SCRATCH")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert shared_arrays.shared_arrays("some", FORMS, lambda: parts([0])) is not None
    (folder,) = tmp_path.glob("genrep-dist-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert shared_arrays.shared_arrays("some", FORMS, lambda: parts([0])) is None


def test_old_files_are_deleted(scratch: Path) -> None:
    shared_arrays.shared_arrays("some", FORMS, lambda: parts([0]))
    os.utime(scratch / "some.values.npy", (0, 0))
    shared_arrays.shared_arrays("other", FORMS, lambda: parts([0]))
    assert not (scratch / "some.values.npy").exists()
    assert (scratch / "some.ids.npy").exists()


@pytest.mark.parametrize("form", ["tensor", "dict"])
def test_mapped_samples_are_those_of_the_store(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(data, "ROW_GROUP_BYTES", 200)
    plain = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    inputs = plain if form == "tensor" else pack_inputs({"a": plain, "b": plain[:, 0].half()})
    samples = gr.Dataset(inputs, torch.arange(50) % 2, torch.arange(50))
    store = Store(str(tmp_path / "store"))
    data.publish_data(store, "digest", samples, samples)
    copied = data.read_data(store, "digest", "train")
    assert not scratch.exists()
    monkeypatch.setattr(data, "SHARED_BYTES", 0)
    mapped = data.read_data(store, "digest", "train")
    assert len(list(scratch.glob("*.npy"))) == 3
    assert data_digest(mapped, mapped) == data_digest(copied, copied) == data_digest(samples, samples)
    if form == "dict":
        assert torch.equal(unpacked(mapped.inputs[7:9])["b"], plain[7:9, 0].half())
    data.forget_data("digest")
    assert not list(scratch.glob("*.npy"))


def test_a_run_on_mapped_samples_has_the_same_tables(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = experiment(seeds=1, methods=["ntk-final/target"], deletion={"fractions": [0.0, 0.1], "signs": ["negative"]})
    tables = []
    for bytes_copied in (data.SHARED_BYTES, 0):
        monkeypatch.setattr(data, "SHARED_BYTES", bytes_copied)
        store = tmp_path / str(bytes_copied)
        gr.run(declared, store=str(store), serial=True, search_path=[str(ROOT)])
        tables.append([(store / f"results/toy/{name}.parquet").read_bytes() for name in ("deletion", "points")])
    assert tables[0] == tables[1]
    assert not list(scratch.glob("*.npy")), "deleted at the end of the run"


def test_processes_that_begin_at_once_write_one_file(scratch: Path) -> None:
    script = (
        "import numpy as np, sys; from genrep_dist.store.shared_arrays import shared_arrays\n"
        "def parts():\n    print('written', flush=True); yield {'v': np.arange(5.0)}\n"
        "assert shared_arrays('some', {'v': (np.dtype(float), (5,))}, parts)['v'].sum() == 10"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    assert b"".join(one.communicate()[0] for one in running) == b"written\n"
    assert all(one.returncode == 0 for one in running)
    assert [path.name for path in scratch.glob("some.*.npy")] == ["some.v.npy"]
