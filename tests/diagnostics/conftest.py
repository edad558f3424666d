from __future__ import annotations

from pathlib import Path

import pytest

import genrep_dist as gr
from tests.diagnostics.runs import copy, run


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> gr.Run:
    """A run without faults. Tests must not change it."""
    return run(tmp_path_factory.mktemp("healthy"))


@pytest.fixture
def run_copy(healthy: gr.Run, tmp_path: Path) -> gr.Run:
    """A copy of the healthy run that a test may damage."""
    return copy(healthy, tmp_path / "store")
