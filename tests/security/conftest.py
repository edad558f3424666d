"""One finished run of a user's own problem, made once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import genrep_dist as gr
from genrep_dist.runner import publish
from tests.experiments import experiment_file
from tests.faults.driver import no_tracking

MODULE = "from tests.toys import Blobs\n\n\nclass OwnProblem(Blobs):\n    pass\n"
FIELDS: dict[str, Any] = {
    "seeds": 1,
    "methods": ["ntk-final/target", "ntk-final/surrogate", "random"],
    "deletion": {"fractions": [0.0, 0.1]},
}


@dataclass
class Finished:
    """A store and the folder of the experiment file and its module; nobody changes them."""

    store: Path
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "experiment.yaml"

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.store, to / "store")
        return to / "store"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "own_problem.py").write_text(MODULE)
    done = Finished(tmp_path_factory.mktemp("elsewhere") / "store", folder)
    experiment_file(done.file, "own_problem:OwnProblem", **FIELDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_track", no_tracking)
        gr.run(done.file, store=str(done.store), serial=True)
    return done


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has run nothing on this machine."""
    monkeypatch.setenv("GENREP_STATE", str(tmp_path / "nothing remembered"))
