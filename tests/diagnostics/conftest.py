from __future__ import annotations

from pathlib import Path

import pytest

import genrep_dist as gr
from tests.diagnostics.patients import copy, run


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    """A run that nothing was done to; it must not be changed."""
    return run(tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def patient(healthy: gr.Run, tmp_path: Path) -> gr.Run:
    """A copy of the healthy run that may be harmed."""
    return copy(healthy, tmp_path / "store")
