"""Stores that only their owner can read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import genrep_dist as gr
from genrep_dist.errors import StoreError
from genrep_dist.store import Store
from tests.experiments import ROOT, experiment

pytestmark = pytest.mark.publishes


@pytest.fixture(autouse=True)
def usual_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    monkeypatch.setenv("GENREP_PRIVATE_STORE", "1")
    yield
    os.umask(before)


def modes(folder: Path) -> dict[Path, int]:
    return {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow's own models, with a newer SQLAlchemy
def test_every_file_of_a_private_store_is_its_owners_alone(tmp_path: Path) -> None:
    store = tmp_path / "new/store"
    fields: dict[str, Any] = {"methods": ["last-layer-final/surrogate", "random"], "seeds": 1, "deletion": {"fractions": [0.0, 0.1]}}
    gr.run(experiment(**fields), store=str(store), serial=True, search_path=[str(ROOT)])
    found = modes(store)
    assert {path: mode for path, mode in found.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}
    assert {"mlflow.db", "record.json", "report.html", "points.parquet", "zarr.json"} <= {path.name for path in found}
    assert modes(tmp_path / "new")[tmp_path / "new"] == 0o755


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "store").mkdir(mode=mode)
    with pytest.raises(StoreError, match=rf"others may enter this folder, mode 0{mode:o}: chmod"):
        Store(str(tmp_path / "store"))
    assert os.umask(0o022) == 0o022


@pytest.mark.parametrize("value", ["", "0"])
def test_stores_are_as_the_umask_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("GENREP_PRIVATE_STORE", value)
    Store(str(tmp_path / "store")).objects.put("a/b", b"")
    assert list(modes(tmp_path / "store").values()) == [0o755, 0o755, 0o644]
