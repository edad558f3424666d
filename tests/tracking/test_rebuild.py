"""A damaged MLflow database is named, and recreated from the published results by one command."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

import genrep_dist as gr
from genrep_dist.errors import StoreError
from genrep_dist.runner.rebuild_tracking import rebuild_tracking
from genrep_dist.store import Store
from genrep_dist.tracking.mlflow_tracker import _as_store_error
from tests.experiments import ROOT, experiment

pytestmark = [
    pytest.mark.publishes,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),  # MLflow's own models
]


def run(store: Path, name: str) -> gr.Run:
    asked = experiment(name=name, methods=["last-layer-final/target", "random"], seeds=1, deletion={"fractions": [0.0, 0.2]})
    return gr.run(asked, store=str(store), serial=True, search_path=[str(ROOT)])


def numbers(done: gr.Run) -> dict[str, dict[str, float]]:
    """What MLflow holds of a run, by method."""
    link = (done.manifest() or {})["tracking"]
    client = MlflowClient(link["uri"])
    runs = client.search_runs([link["experiment_id"]], f"tags.`mlflow.parentRunId` = '{link['run_id']}'")
    return {found.data.tags["genrep.method"]: dict(found.data.metrics) for found in runs}


def test_a_damaged_database_is_named_and_recreated_from_the_results(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "toy")
    before = numbers(first)
    assert set(before) == {"last-layer-final/target", "random"}
    # Copies, because MLflow keeps a database that it has opened open.
    store, other = tmp_path / "store", tmp_path / "other"
    for copy in (store, other):
        shutil.copytree(tmp_path / "first", copy)
        with closing(sqlite3.connect(copy / "mlflow.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'damaged'")
    with pytest.raises(StoreError, match=r"mlflow\.db[\s\S]*genrep tracking rebuild"):
        run(other, "second")
    said = list(rebuild_tracking(Store(str(store))))
    assert any("refused/mlflow.db" in line for line in said)
    assert any(line.startswith("toy: published again") for line in said)
    assert numbers(gr.open_run(str(store), "toy")) == before
    assert set(numbers(run(store, "second"))) == set(before)
    assert numbers(run(store, "toy")) == before


@pytest.mark.parametrize(
    "error", [LookupError("'RUNNINF' is not among the defined enum values"), UnicodeDecodeError("utf-8", b"", 0, 1, "")]
)
def test_errors_of_all_kinds_that_a_damaged_database_ends_in_are_ours(error: Exception) -> None:
    with pytest.raises(StoreError, match=r"a\.db[\s\S]*tracking rebuild"), _as_store_error("sqlite:////store/a.db"):
        raise error
    with pytest.raises(type(error)), _as_store_error("http://server"):
        raise error
