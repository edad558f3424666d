"""Several experiments at once on one store: no model is trained twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import genrep_dist as gr
from tests.experiments import ROOT, experiment
from tests.toys import trainings

DRIVER = """
import sys, time
from pathlib import Path
import genrep_dist as gr
from genrep_dist.runner import publish
from tests.experiments import ROOT
from tests.faults.driver import no_tracking
from tests.runner.test_shared_ledger import asked

folder, number = Path(sys.argv[1]), int(sys.argv[2])
publish._track = no_tracking
question = asked(folder, number)
(folder / f"ready-{number}").touch()
while len(list(folder.glob("ready-*"))) < 3:
    time.sleep(0.01)
gr.run(question, store=str(folder / "store"), serial=True, search_path=[str(ROOT)])
"""


def asked(folder: Path, number: int) -> gr.Experiment:
    """Three experiments with the same models, seeds and points, of which each removes other shares too."""
    fractions = [[0.0, 0.1], [0.0, 0.1, 0.2], [0.0, 0.2, 0.3]][number]
    fields: dict[str, Any] = {"methods": ["ntk-final/tracking", "random"], "deletion": {"fractions": fractions}, "name": f"asked-{number}"}
    return experiment("tests.toys:Counting", {"folder": str(folder)}, **fields)


@pytest.mark.usefixtures("no_mlflow")
def test_experiments_at_once_train_each_model_once(tmp_path: Path) -> None:
    drivers = [
        subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    for driver in drivers:
        _, said = driver.communicate(timeout=300)
        assert driver.returncode == 0, said
    runs = [gr.open_run(str(tmp_path / "store"), f"asked-{number}") for number in range(3)]
    (key,) = {run.plan.keys.training for run in runs}
    rows = runs[0].store.ledger(key).scan().filter(pl.col("num_removed") > 0).select("key").collect()["key"]
    originals = list((tmp_path / "store/artifacts/train").glob("*/*/manifest.json"))
    assert len(rows) == rows.n_unique()
    # Two trial steps in each preparation count as trainings too.
    alone = trainings(tmp_path) - len(rows) - len(originals)
    assert alone % 3 == 0
    before = trainings(tmp_path)
    again = gr.run(
        asked(tmp_path, 2).model_copy(update={"name": "again"}), store=str(tmp_path / "store"), serial=True, search_path=[str(ROOT)]
    )
    assert trainings(tmp_path) - before == alone // 3
    assert again.deletion().collect().equals(runs[2].deletion().collect())
