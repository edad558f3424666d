from __future__ import annotations

from pathlib import Path

import pytest

import genrep_dist as gr
from tests.cli.calls import FEW, SLOWER, Genrep
from tests.experiments import ROOT, experiment


@pytest.fixture
def genrep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Genrep:
    return Genrep(monkeypatch, capsys)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two finished experiments of one data set and different models, and a third with the models of the first."""
    store = tmp_path_factory.mktemp("stores") / "store"
    for name, fields in (("first", {}), ("second", SLOWER), ("third", {"seeds": 3})):
        gr.run(experiment(name=name, **(FEW | fields)), store=str(store), serial=True, search_path=[str(ROOT)])
    return store
