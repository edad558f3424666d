from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from genrep_dist.tracking.mlflow_tracker import publish
from tests.tracking.examples import publication


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that knows another experiment: made once, because that takes seconds, and copied for each test."""
    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    publish(publication(problem="another", artifacts={}), tracking_uri=f"sqlite:///{path}", artifact_location=(path.parent / "a").as_uri())
    return path


@pytest.fixture
def place(fresh: Path, tmp_path: Path) -> dict[str, Any]:
    """Where to publish: the keyword arguments of ``publish``."""
    shutil.copyfile(fresh, tmp_path / "mlflow.db")
    return {"tracking_uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "artifact_location": (tmp_path / "artifacts").as_uri()}
